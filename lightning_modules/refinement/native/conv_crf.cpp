// Mean field of ConvCRF (Teichmann, Cipolla 2018) for float32 on the CPU; conv_crf.py says what is computed and calls it.
//
// What makes it fast. The kernel of a pixel and its window is a row of numbers, normalised and weighted once. It is
// symmetric, k(i, i + d) = k(i + d, -d), so half of the offsets are stored, as one plane an offset: the other half is
// read from the same plane, shifted. A tile of neighbouring pixels is one vector and the classes of a group stay in
// registers over the whole window: a class costs one load and one multiply-add an offset, and each row of the sum goes
// through compatibility and softmax before it leaves the cache. Rows are padded with zeros, so nothing is tested.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX__)
constexpr int LANES = 8;  // 16 lanes gain nothing: few loads are aligned, and theirs would split a cache line
#else
constexpr int LANES = 4;
#endif
constexpr int GROUP = 8;  // classes whose sums stay in registers

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline Vector load(const float* from, int count) {
  if (count >= LANES) return load(from);
  Vector v = {};
  std::memcpy(&v, from, count * sizeof(float));
  return v;
}

inline void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

inline void store(float* to, Vector v, int count) {
  if (count >= LANES)
    store(to, v);
  else
    std::memcpy(to, &v, count * sizeof(float));
}

inline Vector exponential(Vector x) {
  const Vector zero = {};
  const Vector low = zero - 87.0f, high = zero + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vector half = x < zero ? zero - 0.5f : zero + 0.5f;
  const Integers n = __builtin_convertvector(x * 1.44269504f + half, Integers);  // truncated: rounds x / ln 2
  const Vector whole = __builtin_convertvector(n, Vector);
  const Vector r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  Vector p = zero + 1.0f / 5040;  // Taylor to the seventh power: |r| <= ln 2 / 2, error below 1e-8
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * (Vector)((n + 127) << 23);
}

// Calls work(first, last, t) for the shares of the rows; t tells apart those that run at once.
template <typename Work>
void in_parallel(int rows, int threads, Work work) {
  threads = threads < rows ? threads : rows;
  std::vector<std::thread> started;
  started.reserve(threads);
  int t = 0;
  try {
    for (; t + 1 < threads; t++)
      started.emplace_back(work, int(int64_t(rows) * t / threads), int(int64_t(rows) * (t + 1) / threads), t);
  } catch (const std::exception&) {  // no more threads to be had: the rest is done here
  }
  work(int(int64_t(rows) * t / threads), rows, t);
  for (std::thread& thread : started) thread.join();
}

struct Zeros {  // memory from the system's zero pages: what is never touched costs nothing
  float* data = nullptr;
  explicit Zeros(size_t count) : data(static_cast<float*>(std::calloc(count ? count : 1, sizeof(float)))) {
    if (!data) throw std::bad_alloc();
  }
  ~Zeros() { std::free(data); }
  Zeros(const Zeros&) = delete;
  Zeros& operator=(const Zeros&) = delete;
};

struct Grid {  // rows of all planes after one another; the zeros after a row of a plane are those before the next one
  int height, width, reach;
  int64_t pitch, row, size;
  Grid(int height_, int width_, int reach_, int planes)
      : height(height_),
        width(width_),
        reach(reach_),
        pitch((width_ + LANES - 1) / LANES * LANES + reach_),
        row(planes * pitch),
        size(reach + height_ * row + LANES) {}
  int64_t at(int y, int plane = 0) const { return reach + y * row + plane * pitch; }
};

struct Offset {  // one of the whole window, as filter_group reads it
  int64_t values;  // from a pixel to its neighbour
  int64_t kernel;  // from the pixel's place in the first plane to k(pixel, neighbour)
};

enum Normalization { SYMMETRIC, BEFORE, AFTER, NONE };

struct Problem {
  int classes, channels, height, width, blur, iterations, normalization, threads;
  int half;            // offsets: (0, 0) and those below it, or right of it in its row
  const int* offsets;  // (half, 2): dy, dx
  const float *logs, *images, *smoothness, *w_appearance, *w_smoothness, *compatibility;
  float per_pixel, per_level;  // 1 / (2 theta_alpha^2) and 1 / (2 theta_beta^2)

  int dy(int m) const { return offsets[2 * m]; }
  int dx(int m) const { return offsets[2 * m + 1]; }
  int rows() const { return (height + blur - 1) / blur; }
  int columns() const { return (width + blur - 1) / blur; }
  bool mirrored() const { return normalization == SYMMETRIC || normalization == NONE; }  // a plane serves d and -d
  int reach() const {
    int most = 0;
    for (int m = 0; m < half; m++) most = std::abs(dx(m)) > most ? std::abs(dx(m)) : most;
    return most;
  }
  int sets() const {  // of kernel planes: the sum of both kernels, or each where its weights differ between classes
    for (int c = 1; c < classes; c++)
      if (w_appearance[c] != w_appearance[0] || w_smoothness[c] != w_smoothness[0]) return 2;
    return 1;
  }
};

// The weighted sums of one row over the window for G classes.
template <int G, int SETS>
void filter_group(int width, int64_t pitch, const Offset* first, const Offset* last, const float* kernel, int64_t set,
                  const float* values, const float* wa, const float* ws, float* out) {
  for (int x = 0; x < width; x += LANES) {
    Vector sums[SETS][G] = {};
    for (const Offset* o = first; o != last; o++) {
      const float* q = values + x + o->values;
      Vector k[SETS];
      for (int s = 0; s < SETS; s++) k[s] = load(kernel + s * set + x + o->kernel);
      for (int c = 0; c < G; c++) {
        const Vector v = load(q + c * pitch);
        for (int s = 0; s < SETS; s++) sums[s][c] += k[s] * v;
      }
    }
    for (int c = 0; c < G; c++)
      store(out + c * pitch + x, SETS == 1 ? sums[0][c] : wa[c] * sums[0][c] + ws[c] * sums[SETS - 1][c]);
  }
}

template <int SETS, typename... Rest>
void filter_groups(int size, Rest... rest) {
  switch (size) {
    case 1: return filter_group<1, SETS>(rest...);
    case 2: return filter_group<2, SETS>(rest...);
    case 3: return filter_group<3, SETS>(rest...);
    case 4: return filter_group<4, SETS>(rest...);
    case 5: return filter_group<5, SETS>(rest...);
    case 6: return filter_group<6, SETS>(rest...);
    case 7: return filter_group<7, SETS>(rest...);
    default: return filter_group<8, SETS>(rest...);
  }
}

struct Filter {
  const Problem& p;
  const int sets, per_set;
  const Grid k, v;  // of the kernel's planes and of the values, at 1 / blur of the resolution
  Zeros planes;
  std::vector<Offset> window;
  std::vector<int> start;  // of the offsets with each dy, from -above on
  int above = 0;

  explicit Filter(const Problem& p_)
      : p(p_),
        sets(p_.sets()),
        per_set(p_.mirrored() ? p_.half : 2 * p_.half - 1),
        k(p_.rows(), p_.columns(), p_.reach(), sets * per_set),
        v(p_.rows(), p_.columns(), p_.reach(), p_.classes),
        planes(k.size) {
    for (int m = 0; m < p.half; m++) above = p.dy(m) > above ? p.dy(m) : above;
    for (int dy = -above; dy <= above; dy++) {
      start.push_back(int(window.size()));
      for (int m = 0; m < p.half; m++) {
        if (p.dy(m) == dy) window.push_back({step(v, m), m * k.pitch});
        if (p.dy(m) == -dy && m > 0) window.push_back({-step(v, m), other(m) * k.pitch - step(k, m)});
      }
    }
    start.push_back(int(window.size()));
  }

  int64_t step(const Grid& g, int m) const { return p.dy(m) * g.row + p.dx(m); }
  int other(int m) const { return p.mirrored() ? m : p.half - 1 + m; }  // the plane of -d, stored where that of d is

  template <typename Work>  // work(y, m, left, right): the pixels of row y that have a neighbour at offset m
  void each_pair(Work work) const {
    in_parallel(k.height, p.threads, [&](int first, int last, int) {
      for (int y = first; y < last; y++)
        for (int m = 0; m < p.half; m++) {
          const int dx = p.dx(m);
          if (y + p.dy(m) < k.height) work(y, m, dx < 0 ? -dx : 0, dx > 0 ? k.width - dx : k.width);
        }
    });
  }

  void build(const float* images) {
    const Grid n(k.height, k.width, k.reach, 2);
    Zeros factors(n.size);  // of the appearance kernel and of the smoothness kernel, for each pixel
    appearance(images);
    sum_up(n, factors.data);
    normalise(n, factors.data);
    weigh(n, factors.data);
  }

  void appearance(const float* images) {
    const Grid i(k.height, k.width, k.reach, p.channels);
    Zeros padded(i.size);
    for (int y = 0; y < i.height; y++)
      for (int c = 0; c < p.channels; c++)
        std::memcpy(padded.data + i.at(y, c), images + (int64_t(c) * i.height + y) * i.width, i.width * sizeof(float));
    each_pair([&](int y, int m, int left, int right) {
      const float near = float(p.blur * p.blur) * p.per_pixel * float(p.dy(m) * p.dy(m) + p.dx(m) * p.dx(m));
      const float* image = padded.data + i.at(y);
      float* to = planes.data + k.at(y, m);
      for (int x = left; x < right; x += LANES) {
        Vector distance = {};
        for (int c = 0; c < p.channels; c++) {
          const Vector d = load(image + c * i.pitch + x) - load(image + c * i.pitch + x + step(i, m));
          distance += d * d;
        }
        store(to + x, exponential(-(p.per_level * distance + near)), right - x);
      }
    });
  }

  // The sums of both kernels over the window of each pixel
  void sum_up(const Grid& n, float* totals) const {
    in_parallel(k.height, p.threads, [&](int first, int last, int) {
      for (int y = first; y < last; y++) {
        float *appearance = totals + n.at(y, 0), *smoothness = totals + n.at(y, 1);
        for (int m = 0; m < p.half; m++) {
          const int dy = p.dy(m), dx = p.dx(m);
          const int left = dx < 0 ? -dx : 0, right = dx > 0 ? k.width - dx : k.width;
          const float smooth = p.smoothness[m];
          if (y + dy < k.height) {
            const float* kernel = planes.data + k.at(y, m);
            for (int x = left; x < right; x++) appearance[x] += kernel[x];
            for (int x = left; x < right; x++) smoothness[x] += smooth;
          }
          if (m > 0 && y >= dy) {
            const float* kernel = planes.data + k.at(y - dy, m);
            for (int x = left; x < right; x++) appearance[x + dx] += kernel[x];
            for (int x = left; x < right; x++) smoothness[x + dx] += smooth;
          }
        }
      }
    });
  }

  void normalise(const Grid& n, float* totals) const {
    for (int y = 0; y < n.height; y++)
      for (int kernel = 0; kernel < 2; kernel++) {
        float* total = totals + n.at(y, kernel);
        for (int x = 0; x < n.width; x++)
          total[x] = p.normalization == SYMMETRIC ? 1 / std::sqrt(total[x] + 1e-20f) : 1 / (total[x] + 1e-20f);
      }
  }

  // From the appearance kernel to what the filter reads: normalised, weighted and summed where one set serves.
  void weigh(const Grid& n, const float* factors) {
    const float wa = sets == 1 ? p.w_appearance[0] : 1, ws = sets == 1 ? p.w_smoothness[0] : 1;
    const bool of_i = p.normalization == SYMMETRIC || p.normalization == AFTER;
    const bool of_j = p.normalization == SYMMETRIC || p.normalization == BEFORE;
    each_pair([&](int y, int m, int left, int right) {
      const float *ai = factors + n.at(y, 0), *si = factors + n.at(y, 1);
      const float *aj = ai + step(n, m), *sj = si + step(n, m);
      const float smooth = ws * p.smoothness[m];
      float* to = planes.data + k.at(y, m);
      float* back = planes.data + k.at(y, other(m));
      const int64_t set = per_set * k.pitch;
      for (int x = left; x < right; x++) {
        const float similar = wa * to[x];
        const float a = similar * (of_i ? ai[x] : 1) * (of_j ? aj[x] : 1);
        const float s = smooth * (of_i ? si[x] : 1) * (of_j ? sj[x] : 1);
        if (!p.mirrored() && m > 0) {
          const float a_back = similar * (of_i ? aj[x] : 1) * (of_j ? ai[x] : 1);
          const float s_back = smooth * (of_i ? sj[x] : 1) * (of_j ? si[x] : 1);
          back[x] = sets == 1 ? a_back + s_back : a_back;
          if (sets == 2) back[set + x] = s_back;
        }
        to[x] = sets == 1 ? a + s : a;
        if (sets == 2) to[set + x] = s;
      }
    });
  }

  // (classes, pitch): the weighted sum over both kernels for each pixel of row y
  void row(const float* values, int y, float* out) const {
    const int up = y < above ? y : above;
    const int down = v.height - 1 - y < above ? v.height - 1 - y : above;
    const Offset* first = window.data() + start[above - up];
    const Offset* last = window.data() + start[above + down + 1];
    const float* kernel = planes.data + k.at(y);
    const int most = sets == 1 ? GROUP : GROUP / 2;
    const int groups = (p.classes + most - 1) / most;
    for (int n = 0, c = 0; n < groups; n++) {
      const int next = int(int64_t(p.classes) * (n + 1) / groups);
      const auto sum = [&](auto sets) {
        filter_groups<decltype(sets)::value>(next - c, v.width, v.pitch, first, last, kernel, per_set * k.pitch,
                                             values + v.at(y, c), p.w_appearance + c, p.w_smoothness + c,
                                             out + c * v.pitch);
      };
      if (sets == 1)
        sum(std::integral_constant<int, 1>());
      else
        sum(std::integral_constant<int, 2>());
      c = next;
    }
  }
};

struct MeanField {
  const Problem& p;
  Filter filter;
  const Grid full;  // the marginals at the images' resolution
  std::vector<int> left;     // of the two coarse columns that a column lies between, where blur > 1
  std::vector<float> along;  // how far it is from the left one

  explicit MeanField(const Problem& p_)
      : p(p_), filter(p_), full(p_.height, p_.width, p_.blur == 1 ? p_.reach() : 0, p_.classes) {
    for (int x = 0; x < p.width; x++) {
      const float at = place(x);
      left.push_back(int(at));
      along.push_back(at - float(int(at)));
    }
  }

  // Of a row or column among the coarse ones, as interpolate(align_corners=False) has it
  float place(int fine) const { return std::fmax((float(fine) + 0.5f) / float(p.blur) - 0.5f, 0.0f); }

  // softmax(logs - compatibility * message) of row y, both (classes, pitch); no message is a message of zeros.
  void update(int y, const float* message, float* spare, float* out, int64_t out_pitch) const {
    const int64_t area = int64_t(p.height) * p.width;
    const float* logs = p.logs + int64_t(y) * p.width;
    for (int x = 0; x < p.width; x += LANES) {
      Vector most = {};
      for (int c = 0; c < p.classes; c++) {
        Vector value = load(logs + c * area + x, p.width - x);
        if (message && !p.compatibility) value += load(message + c * full.pitch + x);  // Potts: see conv_crf.py
        if (message && p.compatibility) {
          for (int other = 0; other < p.classes; other++)
            value -= p.compatibility[c * p.classes + other] * load(message + other * full.pitch + x);
        }
        store(spare + c * LANES, value);
        if (c == 0) most = value;
        most = value > most ? value : most;
      }
      Vector sum = {};
      for (int c = 0; c < p.classes; c++) {
        const Vector e = exponential(load(spare + c * LANES) - most);
        sum += e;
        store(spare + c * LANES, e);
      }
      const Vector scale = 1.0f / sum;
      for (int c = 0; c < p.classes; c++)
        store(out + c * out_pitch + x, load(spare + c * LANES) * scale, p.width - x);
    }
  }

  // Row y of means over blocks of blur x blur pixels; at the border, over what there is
  void pool_row(const float* values, int y, float* line, float* coarse) const {
    const Grid& v = filter.v;
    const int first = y * p.blur, last = first + p.blur < p.height ? first + p.blur : p.height;
    for (int c = 0; c < p.classes; c++) {
      std::memset(line, 0, p.width * sizeof(float));
      for (int row = first; row < last; row++) {
        const float* from = values + full.at(row, c);
        for (int x = 0; x < p.width; x++) line[x] += from[x];
      }
      for (int x = 0; x < v.width; x++) {
        const int begin = x * p.blur, end = begin + p.blur < p.width ? begin + p.blur : p.width;
        float sum = 0;
        for (int column = begin; column < end; column++) sum += line[column];
        coarse[v.at(y, c) + x] = sum / float((last - first) * (end - begin));
      }
    }
  }

  // Row y of the bilinear enlargement of messages (rows, classes, pitch)
  void enlarge_row(const float* messages, int y, float* line, float* out) const {
    const Grid& v = filter.v;
    const int upper = int(place(y)), lower = upper + 1 < v.height ? upper + 1 : upper;
    const float down = place(y) - float(upper);
    for (int c = 0; c < p.classes; c++) {
      const float *a = messages + upper * v.row + c * v.pitch, *b = messages + lower * v.row + c * v.pitch;
      for (int x = 0; x < v.width; x++) line[x] = a[x] + down * (b[x] - a[x]);
      line[v.width] = line[v.width - 1];
      float* to = out + c * full.pitch;
      for (int x = 0; x < p.width; x++) to[x] = line[left[x]] + along[x] * (line[left[x] + 1] - line[left[x]]);
    }
  }

  void run(float* out) {
    if (p.iterations > 0) filter.build(p.images);
    const Grid& v = filter.v;
    Zeros a(full.size), b(p.blur == 1 ? full.size : v.size), messages(p.blur == 1 ? 0 : v.height * v.row);
    const int64_t share = full.row + p.classes * LANES + full.pitch + 1;
    std::vector<float> rows(share * p.threads);
    float *q = a.data, *next = p.blur == 1 ? b.data : a.data;
    for (int iteration = 0; iteration <= p.iterations; iteration++) {
      const bool last = iteration == p.iterations;
      if (iteration > 0 && p.blur > 1) {
        in_parallel(v.height, p.threads, [&](int first, int end, int t) {
          float* line = rows.data() + share * t;
          for (int y = first; y < end; y++) pool_row(q, y, line, b.data);
        });
        in_parallel(v.height, p.threads, [&](int first, int end, int) {
          for (int y = first; y < end; y++) filter.row(b.data, y, messages.data + y * v.row);
        });
      }
      in_parallel(p.height, p.threads, [&](int first, int end, int t) {
        float* message = rows.data() + share * t;
        float *spare = message + full.row, *line = spare + p.classes * LANES;
        for (int y = first; y < end; y++) {
          if (iteration > 0 && p.blur == 1) filter.row(q, y, message);
          if (iteration > 0 && p.blur > 1) enlarge_row(messages.data, y, line, message);
          update(y, iteration > 0 ? message : nullptr, spare, last ? out + int64_t(y) * p.width : next + full.at(y),
                 last ? int64_t(p.height) * p.width : full.pitch);
        }
      });
      float* done = next;
      next = q;
      q = done;
    }
  }
};

}  // namespace

// 0, or 1 where memory is short. Arrays are dense float32; logs and out (N, C, H, W), images (N, K, h, w) at
// 1 / blur of the resolution, smoothness (half,), weights (C,), compatibility (C, C) or null.
extern "C" int conv_crf(const float* logs, const float* images, const int* offsets, const float* smoothness,
                        const float* w_appearance, const float* w_smoothness, const float* compatibility,
                        float per_pixel, float per_level, int number, int classes, int channels, int height, int width,
                        int half, int blur, int iterations, int normalization, int threads, float* out) {
  try {
    Problem p{classes, channels, height, width, blur, iterations, normalization, threads, half, offsets,
              logs, images, smoothness, w_appearance, w_smoothness, compatibility, per_pixel, per_level};
    const int64_t volume = int64_t(classes) * height * width;
    for (int n = 0; n < number; n++) {
      p.logs = logs + n * volume;
      p.images = images + int64_t(n) * channels * p.rows() * p.columns();
      MeanField field(p);
      field.run(out + n * volume);
    }
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
