// Mean-field inference of the fully connected CRF (Kraehenbuehl & Koltun 2011, https://arxiv.org/abs/1210.5644) whose
// messages pass over a permutohedral lattice (Adams, Baek & Davis 2010, "Fast High-Dimensional Filtering Using the
// Permutohedral Lattice"), for the CPU and for one image a call.
//
// Every iteration is one pass over the pixels and one over the lattice points: a pixel slices the messages, takes its
// softmax and splats it for the next iteration at once, so the marginals never go to memory. What makes that fast:
//   * pixels are worked on in tiles, and in a tile in groups that share a simplex of the appearance lattice, so the
//     points of a simplex are read and written once a group, from the first or second level cache;
//   * points are numbered as the tiles first touch them, so their rows are zeroed just before they are needed;
//   * the blur along one axis walks chains of neighbouring points in place; a point without a neighbour costs nothing;
//   * a row of a point or pixel holds the classes padded to a multiple of eight floats.
// Which simplex a pixel lies in may hang on the last bit, so this file wants -ffp-contract=off; `fma` is explicit.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// ------------------------------------------------------------------------------------------------ eight floats at once

using Floats = float __attribute__((vector_size(32)));
using Ints = int32_t __attribute__((vector_size(32)));
using Bits = uint32_t __attribute__((vector_size(32)));
using Longs = int64_t __attribute__((vector_size(64)));
constexpr int kLanes = 8;

inline Floats all(float v) { return Floats{v, v, v, v, v, v, v, v}; }

inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__clang__)
    return __builtin_elementwise_fma(a, b, c);
#elif defined(__FMA__)
    return __builtin_ia32_vfmaddps256(a, b, c);
#else
    return a * b + c;
#endif
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

#if defined(__clang__)
#define SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#define SHUFFLE_TWO(v, w, ...) __builtin_shufflevector(v, w, __VA_ARGS__)
#else
#define SHUFFLE(v, ...) __builtin_shuffle(v, Ints{__VA_ARGS__})
#define SHUFFLE_TWO(v, w, ...) __builtin_shuffle(v, w, Ints{__VA_ARGS__})
#endif

inline void transpose(Floats (&m)[kLanes]) {
    Floats t[kLanes];
    for (int i = 0; i < 8; i += 2) {
        t[i] = SHUFFLE_TWO(m[i], m[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        t[i + 1] = SHUFFLE_TWO(m[i], m[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int k = 0; k < 2; ++k) {
            m[i + k] = SHUFFLE_TWO(t[i + k], t[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            m[i + k + 2] = SHUFFLE_TWO(t[i + k], t[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = SHUFFLE_TWO(m[i], m[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        t[i + 4] = SHUFFLE_TWO(m[i], m[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (int i = 0; i < 8; ++i) m[i] = t[i];
}

// The first `count` floats from `source` on; the other lanes hold what they may.
inline Floats read(const float* source, int count) {
    Floats v = {};
    if (count >= kLanes) std::memcpy(&v, source, sizeof v);
    else std::memcpy(&v, source, count * sizeof(float));
    return v;
}

inline void write(Floats v, float* target, int count) {
    if (count >= kLanes) std::memcpy(target, &v, sizeof v);
    else std::memcpy(target, &v, count * sizeof(float));
}

inline Floats lanes_sum(Floats v) {
    v += SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5);
    return v + SHUFFLE(v, 1, 0, 3, 2, 5, 4, 7, 6);
}

inline Floats lanes_max(Floats v) {
    v = larger(v, SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3));
    v = larger(v, SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5));
    return larger(v, SHUFFLE(v, 1, 0, 3, 2, 5, 4, 7, 6));
}

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest, ties to even
constexpr float kLowest = -70.0f;      // exp(-70) = 4e-31: far below any marginal that counts, far above denormals
constexpr float kHighest = 80.0f;      // exp(80) = 6e34: the sum over thousands of classes does not overflow

// exp for kLowest <= x <= kHighest, relative error 2e-7; polynomial of the Cephes library's expf.
inline Floats exponential(Floats x) {
    const Floats shifted = fma(x, all(1.44269504088896341f), all(kRound));
    const Floats power = shifted - kRound;
    Floats r = fma(power, all(-0.693359375f), x);
    r = fma(power, all(2.12194440e-4f), r);
    Floats p = fma(r, all(1.9875691500e-4f), all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    p = fma(p, r * r, r + 1.0f);
    return (Floats)((Bits)p + ((Bits)shifted << 23));
}

// ------------------------------------------------------------------------------------------------------------- memory

// Aligned, not initialised: pages nobody touches cost nothing.
template <class T>
class Buffer {
public:
    explicit Buffer(size_t size = 0) { resize(size); }
    ~Buffer() { std::free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    void resize(size_t size) {
        std::free(data_);
        data_ = nullptr;
        if (size == 0) return;
        const size_t page = size * sizeof(T) < kHuge ? 64 : kHuge;
        data_ = static_cast<T*>(std::aligned_alloc(page, (size * sizeof(T) + page - 1) / page * page));
        if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        if (page == kHuge) madvise(data_, size * sizeof(T), MADV_HUGEPAGE);  // fewer page faults and TLB misses
#endif
    }
    T* get() const { return data_; }
    T& operator[](size_t index) const { return data_[index]; }

private:
    static constexpr size_t kHuge = size_t(1) << 21;
    T* data_ = nullptr;
};

// ------------------------------------------------------------------------------------------------------------ threads

// Where `count` threads wait for one another; spins first, since most waits are shorter than going to sleep.
class Barrier {
public:
    explicit Barrier(int count) : count_(count) {}
    void wait() {
        if (count_ == 1) return;
        const unsigned round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
            arrived_.store(0, std::memory_order_relaxed);
            std::lock_guard<std::mutex> lock(mutex_);
            round_.store(round + 1, std::memory_order_release);
            changed_.notify_all();
            return;
        }
        for (int spin = 0; spin < 4000; ++spin)
            if (round_.load(std::memory_order_acquire) != round) return;
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != round; });
    }

private:
    const int count_;
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
};

// Calls work(0) ... work(count - 1), each in its own thread; calls none if not all threads can be had (system_error).
template <class Work>
void parallel(int count, const Work& work) {
    enum { kWait, kGo, kCancel };
    std::atomic<int> gate{kWait};
    std::vector<std::thread> others;
    others.reserve(count - 1);
    auto open = [&](int state) {
        gate.store(state, std::memory_order_release);
        if (state == kGo) work(0);
        for (std::thread& other : others) other.join();
    };
    try {
        for (int index = 1; index < count; ++index) {
            others.emplace_back([&, index] {
                while (gate.load(std::memory_order_acquire) == kWait) std::this_thread::yield();
                if (gate.load(std::memory_order_acquire) == kGo) work(index);
            });
        }
    } catch (const std::system_error&) {
        open(kCancel);
        throw;
    }
    open(kGo);
}

// -------------------------------------------------------------------------------------------------------------- tiles

constexpr int kTile = 32;               // 32 x 32 pixels of 24 floats and their points fit the second level cache
constexpr int kTilePixels = kTile * kTile;
constexpr int kGroup = 64;              // pixels of a group at most, so that a block of groups fits the first level
constexpr int kBlock = 64;              // pixels after which a block of groups is full

struct Image {
    int height, width, channels;
    const float* levels;  // (channels, height, width), 0 to 255
    int tiles_x() const { return (width + kTile - 1) / kTile; }
    int tiles() const { return tiles_x() * ((height + kTile - 1) / kTile); }
    size_t pixels() const { return size_t(height) * width; }
};

// A tile holds its pixels row by row; they are the positions first ... first + count of all.
struct Tile {
    int x, y, width, height;
    size_t first;
    Tile(const Image& image, int index) {
        x = index % image.tiles_x() * kTile;
        y = index / image.tiles_x() * kTile;
        width = std::min(kTile, image.width - x);
        height = std::min(kTile, image.height - y);
        first = size_t(y) * image.width + size_t(x) * height;
    }
    int count() const { return width * height; }
};

// ------------------------------------------------------------------------------------- lattice (Adams et al. 2010, 3)

constexpr int kAhead = 12;  // rows or keys that are asked for before they are needed

enum Normalisation { kSymmetric, kBefore, kAfter, kNone };  // of a kernel: n_i k(i, j) n_j, k n_j, n_i k, k

struct OutOfRange {};  // the lattice's coordinates do not fit 64 bits: deviations too small for the image

inline size_t scramble(uint64_t key) {
    key *= 0x9E3779B97F4A7C15ull;  // 2^64 / golden ratio: Fibonacci hashing (Knuth, TAOCP 3, 6.4)
    return key ^ (key >> 32);
}

// Points by packed coordinates, numbered as they come; open addressing.
class Points {
public:
    Points() : slots_(1 << 12, Slot{0, -1}) {}
    size_t size() const { return keys_.size(); }
    uint64_t key(size_t id) const { return keys_[id]; }
    void prefetch(uint64_t key) const { __builtin_prefetch(&slots_[scramble(key) & (slots_.size() - 1)]); }
    int find(uint64_t key) const {
        const size_t mask = slots_.size() - 1;
        for (size_t at = scramble(key) & mask;; at = (at + 1) & mask) {
            if (slots_[at].id < 0 || slots_[at].key == key) return slots_[at].id;
        }
    }
    int add(uint64_t key) {
        const size_t mask = slots_.size() - 1;
        for (size_t at = scramble(key) & mask;; at = (at + 1) & mask) {
            if (slots_[at].id >= 0 && slots_[at].key == key) return slots_[at].id;
            if (slots_[at].id < 0) {
                const int id = int(keys_.size());
                slots_[at] = Slot{key, id};
                keys_.push_back(key);
                if (2 * keys_.size() > slots_.size()) grow();
                return id;
            }
        }
    }

private:
    struct Slot {
        uint64_t key;
        int id;
    };
    void grow() {
        std::vector<Slot> larger(2 * slots_.size(), Slot{0, -1});
        const size_t mask = larger.size() - 1;
        for (size_t id = 0; id < keys_.size(); ++id) {
            size_t at = scramble(keys_[id]) & mask;
            while (larger[at].id >= 0) at = (at + 1) & mask;
            larger[at] = Slot{keys_[id], int(id)};
        }
        slots_.swap(larger);
    }
    std::vector<Slot> slots_;
    std::vector<uint64_t> keys_;
};

// Maps positions (D = 2) or positions and grey levels (D = 3, 5) to a point of each simplex: Adams et al., Sec. 3.
// The order of operations in float32 is that of the authors' code (densecrf), because features often lie exactly on the
// border between simplices (x / 1 does), where another rounding chooses another simplex.
template <int D>
class Embedding {
public:
    uint64_t unit[D];  // what 1 in a coordinate adds to a packed key

    Embedding(const Image& image, float theta_position, float theta_level)
        : image_(image), position_(theta_position), level_(theta_level) {
        const float deviation = std::sqrt(2.0 / 3.0) * (D + 1);  // expected deviation of the blur, p. 6
        for (int i = 0; i < D; ++i) scale_[i] = 1.0 / std::sqrt(double((i + 2) * (i + 1))) * deviation;
        pack();
    }

    // Eight pixels from (x, y) on: key of the simplex's point with remainder 0, rank of each coordinate (3 bits each),
    // barycentric coordinates.
    void operator()(int x, int y, int count, Longs& key, Ints& ranks, Floats (&weight)[kLanes]) const {
        Floats feature[D];
        feature[0] = (float(x) + Floats{0, 1, 2, 3, 4, 5, 6, 7}) / position_;
        feature[1] = all(float(y)) / position_;
        for (int channel = 0; channel + 2 < D; ++channel) {
            const float* levels = image_.levels + channel * image_.pixels() + size_t(y) * image_.width + x;
            feature[channel + 2] = read(levels, count) / level_;
        }
        // Lanes beyond the image repeat its last pixel: small deviations would take them out of an integer's range.
        for (Floats& values : feature)
            for (int lane = count; lane < kLanes; ++lane) values[lane] = values[count - 1];

        Floats elevated[D + 1], sum = {};  // y = E p, p. 5
        for (int j = D; j > 0; --j) {
            const Floats scaled = feature[j - 1] * scale_[j - 1];
            elevated[j] = sum - float(j) * scaled;
            sum += scaled;
        }
        elevated[0] = sum;

        // The closest point with remainder 0, and the rank of each coordinate's distance to it
        Ints origin[D + 1], rank[D + 1], excess = {};
        Floats distance[D + 1];
        for (int i = 0; i <= D; ++i) {
            const Floats nearest = elevated[i] * kBack + kRound - kRound;
            excess += __builtin_convertvector(nearest, Ints);
            origin[i] = __builtin_convertvector(nearest, Ints) * (D + 1);
            distance[i] = elevated[i] - nearest * float(D + 1);
            rank[i] = Ints{};
        }
        for (int i = 0; i < D; ++i) {
            for (int j = i + 1; j <= D; ++j) {
                const Ints less = distance[i] < distance[j];  // -1 where true
                rank[i] -= less;
                rank[j] += less + 1;
            }
        }
        // A point off the plane where coordinates sum to 0 goes back to it (p. 6: the largest residues move)
        Floats sorted[D + 1];
        for (int i = 0; i <= D; ++i) sorted[i] = Floats{};
        key = Longs{};
        ranks = Ints{};
        for (int i = 0; i <= D; ++i) {
            rank[i] += excess;
            const Ints move = ((rank[i] < 0) & (D + 1)) - ((rank[i] > D) & (D + 1));
            rank[i] += move;
            origin[i] += move;
            const Floats residue = (elevated[i] - __builtin_convertvector(origin[i], Floats)) * kBack;
            for (int r = 0; r <= D; ++r) sorted[r] = rank[i] == r ? residue : sorted[r];
            ranks += rank[i] << (3 * i);
            if (i < D) key += __builtin_convertvector(origin[i] - lowest_[i], Longs) << shift_[i];
        }
        weight[0] = sorted[D] + (1.0f - sorted[0]);  // p. 10
        for (int i = 1; i <= D; ++i) weight[i] = sorted[D - i] - sorted[D - i + 1];
    }

    // Keys of all D + 1 points of a simplex, by remainder.
    void corners(uint64_t key, uint32_t ranks, uint64_t* corner) const {
        uint64_t of_rank[D + 1] = {}, ones = 0;
        for (int i = 0; i < D; ++i) {
            of_rank[ranks >> (3 * i) & 7] = unit[i];
            ones += unit[i];
        }
        corner[0] = key;
        for (int r = 1; r <= D; ++r) corner[r] = corner[r - 1] + ones - (D + 1) * of_rank[D + 1 - r];
    }

private:
    static constexpr float kBack = 1.0f / (D + 1);
    const Image& image_;
    const float position_, level_;
    float scale_[D];
    int32_t lowest_[D];
    int shift_[D];

    // As many bits a coordinate as the image's range of it needs, with room for a simplex and a neighbour around.
    void pack() {
        double low[D], high[D];
        for (int i = 0; i < D; ++i) low[i] = 0;
        high[0] = (image_.width - 1) / position_;
        high[1] = (image_.height - 1) / position_;
        for (int i = 2; i < D; ++i) {
            const float* levels = image_.levels + (i - 2) * image_.pixels();
            Floats least = all(levels[0]), most = least;
            size_t at = 0;
            for (; at + kLanes <= image_.pixels(); at += kLanes) {
                Floats v;
                std::memcpy(&v, levels + at, sizeof v);
                least = smaller(least, v);
                most = larger(most, v);
            }
            for (; at < image_.pixels(); ++at) {
                least = smaller(least, all(levels[at]));
                most = larger(most, all(levels[at]));
            }
            low[i] = -lanes_max(-least)[0] / level_;
            high[i] = lanes_max(most)[0] / level_;
        }
        double sum_low = 0, sum_high = 0;
        int bits = 0;
        const int room = 4 * (D + 1);
        auto range = [&](int i, double from, double to) {
            if (!(from > -4e6 && to < 4e6)) throw OutOfRange{};  // kRound rounds no larger numbers; NaN too
            lowest_[i] = int32_t(std::floor(from)) - room;
            shift_[i] = bits;
            unit[i] = uint64_t(1) << bits;
            for (int64_t span = int64_t(std::ceil(to)) + room - lowest_[i]; span > 0; span >>= 1) ++bits;
            if (bits > 63) throw OutOfRange{};
        };
        double from[D + 1], to[D + 1];
        for (int j = D; j > 0; --j) {
            const double least = low[j - 1] * scale_[j - 1], most = high[j - 1] * scale_[j - 1];
            from[j] = sum_low - j * most;
            to[j] = sum_high - j * least;
            sum_low += least;
            sum_high += most;
        }
        from[0] = sum_low;
        to[0] = sum_high;
        for (int i = 0; i < D; ++i) range(i, from[i], to[i]);
    }
};

// What the pixels and points of one kernel need. Pixels are in the order of `order` if Grouped, else tile by tile.
template <int D, bool Grouped>
struct Lattice {
    size_t size = 0;                    // points
    std::vector<uint32_t> first;        // (tiles + 1) the first point that nobody touched before the tile
    Buffer<float> weight;               // (pixels, D + 1) barycentric, after `normalise` times the kernel's factors
    Buffer<uint32_t> point;             // (pixels, D + 1) if not Grouped
    std::vector<uint32_t> group;        // (groups, D + 2) number of pixels, points, if Grouped
    std::vector<uint32_t> first_group;  // (tiles + 1)
    Buffer<uint16_t> order;             // (pixels) where in the tile a pixel is, if Grouped
    std::vector<uint32_t> chain[D + 1]; // along each axis the points that have neighbours: 2 * point + (last of chain)
    size_t links[D + 1];                // of them; `kAhead` more entries follow for who looks ahead
    std::vector<size_t> part[D + 1];    // (threads + 1) where each thread's share of the chains begins
    Buffer<float> before, after;        // (pixels) factors of the normalisation that `weight` cannot hold

    Lattice(const Image& image, float theta_position, float theta_level) {
        const Embedding<D> embed(image, theta_position, theta_level);
        Points points;
        weight.resize(image.pixels() * (D + 1));
        if (Grouped) order.resize(image.pixels());
        else point.resize(image.pixels() * (D + 1));
        first.push_back(0);
        first_group.push_back(0);

        constexpr int kSlots = 2 * kTilePixels;
        static_assert((kSlots & (kSlots - 1)) == 0, "the table of a tile masks its hash");
        struct Simplex {
            uint64_t key;
            uint32_t ranks;
        };
        std::vector<Simplex> simplex(kTilePixels), slot(kSlots);
        std::vector<uint32_t> stamp(kSlots, 0), count(kTilePixels), start(kTilePixels);
        std::vector<uint32_t> corner_of(kTilePixels * (D + 1));
        std::vector<uint64_t> corner_key(kTilePixels * (D + 1));
        std::vector<uint16_t> number(kSlots), group_of(kTilePixels);
        Buffer<float> raw(kTilePixels * (D + 1) + kLanes);
        for (int index = 0; index < image.tiles(); ++index) {
            const Tile tile(image, index);
            // The simplices of the tile, numbered as they come
            int groups = 0, pixel = 0;
            for (int y = 0; y < tile.height; ++y) {
                for (int x = 0; x < tile.width; x += kLanes) {
                    const int valid = std::min(kLanes, tile.width - x);
                    Longs keys;
                    Ints ranks;
                    Floats weights[kLanes] = {};
                    embed(tile.x + x, tile.y + y, valid, keys, ranks, weights);
                    transpose(weights);  // each row written hides what the one before wrote beyond its D + 1
                    for (int lane = 0; lane < valid; ++lane, ++pixel) {
                        const uint64_t key = keys[lane];
                        const uint32_t rank = ranks[lane];
                        size_t at = scramble(key ^ uint64_t(rank) << 40) & (kSlots - 1);
                        while (stamp[at] == uint32_t(index + 1) && (slot[at].key != key || slot[at].ranks != rank))
                            at = (at + 1) & (kSlots - 1);
                        if (stamp[at] != uint32_t(index + 1)) {
                            stamp[at] = index + 1;
                            slot[at] = simplex[groups] = Simplex{key, rank};
                            count[groups] = 0;
                            number[at] = uint16_t(groups++);
                        }
                        group_of[pixel] = number[at];
                        ++count[number[at]];
                        std::memcpy(&raw[pixel * (D + 1)], &weights[lane], sizeof(Floats));
                    }
                }
            }
            for (int g = 0; g < groups; ++g) {
                uint64_t* const corner = &corner_key[g * (D + 1)];
                embed.corners(simplex[g].key, simplex[g].ranks, corner);
                for (int i = 0; i <= D; ++i) points.prefetch(corner[i]);
            }
            uint32_t begin = 0;
            for (int g = 0; g < groups; ++g) {
                for (int i = 0; i <= D; ++i) corner_of[g * (D + 1) + i] = points.add(corner_key[g * (D + 1) + i]);
                start[g] = begin;
                begin += count[g];
                if (!Grouped) continue;
                for (uint32_t left = count[g]; left > 0;) {
                    const uint32_t part = std::min<uint32_t>(left, kGroup);
                    group.push_back(part);
                    group.insert(group.end(), &corner_of[g * (D + 1)], &corner_of[g * (D + 1)] + D + 1);
                    left -= part;
                }
            }
            for (int p = 0; p < pixel; ++p) {
                const int g = group_of[p];
                const size_t at = tile.first + (Grouped ? start[g]++ : p);
                std::memcpy(&weight[at * (D + 1)], &raw[p * (D + 1)], sizeof(float) * (D + 1));
                if (Grouped) order[at] = uint16_t(p);
                else std::memcpy(&point[at * (D + 1)], &corner_of[g * (D + 1)], sizeof(uint32_t) * (D + 1));
            }
            first.push_back(uint32_t(points.size()));
            first_group.push_back(uint32_t(group.size() / (D + 2)));
            if (points.size() > (size_t(1) << 31) - 8 * kTilePixels) throw OutOfRange{};
        }
        size = points.size();
        link(embed, points);
    }

    // K 1, the sum of the kernel at every pixel, up to the constant `kAlpha` with which the lattice scales.
    std::vector<float> row_sums(const Image& image) const {
        std::vector<float> value(size, 0.0f), sum(image.pixels());
        each(image, [&](size_t pixel, const uint32_t* at) {
            for (int i = 0; i <= D; ++i) value[at[i]] += weight[pixel * (D + 1) + i];
        });
        for (int axis = 0; axis <= D; ++axis) {
            float previous = 0;
            for (size_t i = 0; i < links[axis]; ++i) {
                float& here = value[chain[axis][i] >> 1];
                const bool last = chain[axis][i] & 1;
                const float next = last ? 0.0f : value[chain[axis][i + 1] >> 1], old = here;
                here = old + 0.5f * (previous + next);
                previous = last ? 0.0f : old;
            }
        }
        each(image, [&](size_t pixel, const uint32_t* at) {
            float total = 0;
            for (int i = 0; i <= D; ++i) total += weight[pixel * (D + 1) + i] * value[at[i]];
            sum[pixel] = total * kAlpha;
        });
        return sum;
    }

    static constexpr float kAlpha = 1.0f / (1.0f + 1.0f / (1 << D));  // of the authors' code: what the blur adds

    // Normalises the kernel and, where it is one number >= 0 that may stand on both sides, folds its weight in.
    void normalise(const Image& image, int normalisation, bool fold, float kernel_weight) {
        std::vector<float> sum = row_sums(image);
        const size_t pixels = image.pixels();
        if (fold) {
            const float factor = std::sqrt(kAlpha * kernel_weight);
            for (size_t p = 0; p < pixels; ++p) {
                const float f = normalisation == kNone ? factor : float(factor / std::sqrt(sum[p] + 1e-20));
                for (int i = 0; i <= D; ++i) weight[p * (D + 1) + i] *= f;
            }
            return;
        }
        before.resize(pixels);
        after.resize(pixels);
        for (size_t p = 0; p < pixels; ++p) {
            const double root = 1 / std::sqrt(sum[p] + 1e-20), inverse = 1 / (sum[p] + 1e-20);
            before[p] = float(normalisation == kSymmetric ? root : normalisation == kBefore ? inverse : 1);
            after[p] = float(kAlpha * (normalisation == kSymmetric ? root : normalisation == kAfter ? inverse : 1));
        }
    }

    // Cuts the chains of each axis into `threads` shares.
    void share(int threads) {
        for (int axis = 0; axis <= D; ++axis) {
            part[axis].assign(threads + 1, links[axis]);
            part[axis][0] = 0;
            for (int t = 1; t < threads; ++t) {
                size_t at = std::max(part[axis][t - 1], links[axis] * t / threads);
                while (at > 0 && at < links[axis] && !(chain[axis][at - 1] & 1)) ++at;
                part[axis][t] = at;
            }
        }
    }

private:
    // The neighbours along an axis differ by a constant (D, -1, ..., -1): chains of them, each from end to end.
    void link(const Embedding<D>& embed, const Points& points) {
        uint64_t ones = 0;
        for (int i = 0; i < D; ++i) ones += embed.unit[i];
        std::vector<int> next(size);
        std::vector<char> has_previous(size);
        for (int axis = 0; axis <= D; ++axis) {
            const uint64_t step = (axis < D ? (D + 1) * embed.unit[axis] : 0) - ones;
            std::fill(has_previous.begin(), has_previous.end(), 0);
            for (size_t id = 0; id < size; ++id) {
                points.prefetch(points.key(std::min(id + kAhead, size - 1)) + step);
                next[id] = points.find(points.key(id) + step);
                if (next[id] >= 0) has_previous[next[id]] = 1;
            }
            for (size_t head = 0; head < size; ++head) {
                if (has_previous[head] || next[head] < 0) continue;
                for (int id = int(head); id >= 0; id = next[id])
                    chain[axis].push_back(2 * uint32_t(id) + (next[id] < 0));
            }
            links[axis] = chain[axis].size();
            chain[axis].resize(links[axis] + kAhead);
        }
    }

    template <class Visit>
    void each(const Image& image, const Visit& visit) const {
        size_t pixel = 0;
        if (!Grouped)
            for (; pixel < image.pixels(); ++pixel) visit(pixel, &point[pixel * (D + 1)]);
        for (size_t g = 0; g < group.size(); g += D + 2)
            for (uint32_t k = 0; k < group[g]; ++k) visit(pixel++, &group[g + 1]);
    }
};

// ------------------------------------------------------------------------- mean field (Kraehenbuehl & Koltun 2011, 3)

struct Model {
    int classes, iterations, normalisation, threads;
    float theta_alpha, theta_beta, theta_gamma;
    const float* appearance;     // (classes) weights of the kernels
    const float* smoothness;     // (classes)
    const float* compatibility;  // (classes, classes), or null for Potts
};

// Rows of a lattice that one thread splats to: its own, and a private copy of those that earlier threads touch first.
struct Rows {
    Floats* main;
    uintptr_t spare;  // the address where row 0 of the private copy would be, which no pointer may have
    uint32_t start;   // rows before it, in Floats, are private
    template <bool Split>
    Floats* at(uint32_t offset) const {
        if (Split && offset < start) return reinterpret_cast<Floats*>(spare + offset * sizeof(Floats));
        return main + offset;
    }
};

template <int D>
class Inference {
public:
    Inference(const Image& image, const Model& model, float* out)
        : image_(image), model_(model), out_(out), width_((model.classes + kLanes - 1) / kLanes),
          barrier_(model.threads) {}

    // Returns the bytes still to be had where `limit` does not allow them, else 0.
    size_t operator()(const float* unary, size_t limit) {
        build();
        const size_t points = appearance_->size + smoothness_->size;
        const size_t pixels = image_.pixels();
        const size_t row = width_ * sizeof(Floats);
        if (points * width_ > UINT32_MAX) throw OutOfRange{};  // `group` and `point` name rows in 32 bits
        share();
        size_t bytes = pixels * row + 2 * points * row;
        for (const Share& own : shares_) bytes += (own.spare[0] + own.spare[1]) * row + 2 * kTilePixels * row;
        if (bytes > limit) return bytes;
        unary_.resize(pixels * width_);
        for (int side = 0; side < 2; ++side) {
            values_[side][0].resize(appearance_->size * width_);
            values_[side][1].resize(smoothness_->size * width_);
        }
        for (Share& own : shares_) {
            own.private_rows[0].resize(own.spare[0] * width_);
            own.private_rows[1].resize(own.spare[1] * width_);
            own.tile.resize(kTilePixels * width_);
            own.block.resize((kBlock + kGroup) * width_);
            own.message.resize(width_);
        }
        parallel(model_.threads, [&](int thread) { work(thread, unary); });
        return 0;
    }

private:
    static constexpr int A = D + 1, S = 3;  // points of a simplex of the appearance and of the smoothness lattice

    struct Share {
        int from, to;                   // tiles
        uint32_t start[2], lowest[2];   // of both lattices: the first own point, the first point of anybody's
        size_t spare[2];                // private rows
        Buffer<Floats> private_rows[2], tile, block, message;
    };

    void build() {
        folded_ = (model_.normalisation == kSymmetric || model_.normalisation == kNone) && !model_.compatibility;
        for (int c = 0; c < model_.classes; ++c) {
            for (const float* weight : {model_.appearance, model_.smoothness})
                folded_ = folded_ && weight[c] == weight[0] && weight[c] >= 0;
        }
        std::exception_ptr failed[2];
        auto task = [&](int which) {
            try {
                if (which == 0) {
                    appearance_.reset(new Lattice<D, true>(image_, model_.theta_alpha, model_.theta_beta));
                    appearance_->normalise(image_, model_.normalisation, folded_, model_.appearance[0]);
                    appearance_->share(model_.threads);
                } else {
                    smoothness_.reset(new Lattice<2, false>(image_, model_.theta_gamma, 1.0f));
                    smoothness_->normalise(image_, model_.normalisation, folded_, model_.smoothness[0]);
                    smoothness_->share(model_.threads);
                }
            } catch (...) {
                failed[which] = std::current_exception();
            }
        };
        if (model_.threads > 1) {
            parallel(2, task);
        } else {
            task(0);
            task(1);
        }
        for (const std::exception_ptr& error : failed)
            if (error) std::rethrow_exception(error);
        weights_.resize(2 * width_);
        for (int c = 0; c < width_ * kLanes; ++c) {
            weights_[c / kLanes][c % kLanes] = c < model_.classes ? model_.appearance[c] : 0.0f;
            weights_[width_ + c / kLanes][c % kLanes] = c < model_.classes ? model_.smoothness[c] : 0.0f;
        }
        if (!model_.compatibility) return;
        compatibility_.resize(size_t(model_.classes) * width_);  // column by column
        for (int column = 0; column < model_.classes; ++column)
            for (int c = 0; c < width_ * kLanes; ++c)
                compatibility_[column * width_ + c / kLanes][c % kLanes] =
                    c < model_.classes ? model_.compatibility[c * model_.classes + column] : 0.0f;
    }

    void share() {
        shares_ = std::vector<Share>(model_.threads);
        for (int t = 0; t < model_.threads; ++t) {
            Share& own = shares_[t];
            own.from = int(int64_t(image_.tiles()) * t / model_.threads);
            own.to = int(int64_t(image_.tiles()) * (t + 1) / model_.threads);
            own.lowest[0] = own.start[0] = appearance_->first[own.from];
            own.lowest[1] = own.start[1] = smoothness_->first[own.from];
            for (size_t g = appearance_->first_group[own.from]; g < appearance_->first_group[own.to]; ++g)
                for (int i = 1; i <= A; ++i)
                    own.lowest[0] = std::min(own.lowest[0], appearance_->group[g * (A + 1) + i]);
            const size_t end = own.to < image_.tiles() ? Tile(image_, own.to).first : image_.pixels();
            const size_t begin = own.from < image_.tiles() ? Tile(image_, own.from).first : image_.pixels();
            for (size_t i = begin * S; i < end * S; ++i) own.lowest[1] = std::min(own.lowest[1], smoothness_->point[i]);
            for (int k = 0; k < 2; ++k) own.spare[k] = own.start[k] - own.lowest[k];
        }
    }

    void work(int thread, const float* unary) {
        Share& own = shares_[thread];
        for (int tile = own.from; tile < own.to; ++tile) load(Tile(image_, tile), unary, own);
        // Groups and pixels now name rows in units of Floats
        for (size_t g = appearance_->first_group[own.from]; g < appearance_->first_group[own.to]; ++g)
            for (int i = 1; i <= A; ++i) appearance_->group[g * (A + 1) + i] *= width_;
        barrier_.wait();
        for (int iteration = 0; iteration <= model_.iterations; ++iteration) {
            const bool last = iteration == model_.iterations;
            Floats* const from[2] = {values_[iteration & 1][0].get(), values_[iteration & 1][1].get()};
            Floats* const to[2] = {values_[~iteration & 1][0].get(), values_[~iteration & 1][1].get()};
            Rows rows[2];
            for (int k = 0; k < 2; ++k) {
                Floats* const spare = own.private_rows[k].get();
                const uintptr_t first = reinterpret_cast<uintptr_t>(spare) - size_t(own.lowest[k]) * width_ * sizeof(Floats);
                rows[k] = Rows{to[k], first, own.start[k] * uint32_t(width_)};
                if (!last && own.spare[k]) std::memset(spare, 0, own.spare[k] * width_ * sizeof(Floats));
            }
            for (int index = own.from; index < own.to; ++index) {
                if (!last) {
                    clear(to[0], appearance_->first, index);
                    clear(to[1], smoothness_->first, index);
                }
                if (folded_) tile<false>(index, iteration > 0, last, from, rows, own);
                else tile<true>(index, iteration > 0, last, from, rows, own);
            }
            if (last) return;
            barrier_.wait();
            if (model_.threads > 1) {
                gather(to[0], 0, thread);
                gather(to[1], 1, thread);
                barrier_.wait();
            }
            for (int axis = 0; axis <= D; ++axis) {
                blur(*appearance_, axis, thread, to[0]);
                if (axis <= 2) blur(*smoothness_, axis, thread, to[1]);
                barrier_.wait();
            }
        }
    }

    void clear(Floats* rows, const std::vector<uint32_t>& first, int tile) const {
        const size_t count = first[tile + 1] - first[tile];
        std::memset(rows + size_t(first[tile]) * width_, 0, count * width_ * sizeof(Floats));
    }

    // Unaries of a tile to (pixels, classes) in the order of the groups, negated, the largest 0 and the padding very
    // low; the pixels' smoothness points and weights to the same order.
    void load(const Tile& tile, const float* unary, Share& own) {
        for (int y = 0; y < tile.height; ++y) {
            for (int x = 0; x < tile.width; x += kLanes) {
                const int valid = std::min(kLanes, tile.width - x);
                Floats* const rows = own.tile.get() + (y * tile.width + x) * width_;
                for (int b = 0; b < width_; ++b) {
                    Floats part[kLanes];
                    for (int i = 0; i < kLanes; ++i) {
                        const int c = b * kLanes + i;
                        const size_t pixel = size_t(tile.y + y) * image_.width + tile.x + x;
                        part[i] = c < model_.classes ? -read(unary + c * image_.pixels() + pixel, valid) : all(-1e30f);
                    }
                    transpose(part);
                    for (int i = 0; i < valid; ++i) rows[i * width_ + b] = part[i];
                }
            }
        }
        for (int k = 0; k < tile.count(); ++k) {
            const Floats* row = own.tile.get() + appearance_->order[tile.first + k] * width_;
            Floats most = row[0];
            for (int b = 1; b < width_; ++b) most = larger(most, row[b]);
            most = lanes_max(most);
            for (int b = 0; b < width_; ++b) unary_[(tile.first + k) * width_ + b] = row[b] - most;
        }
        float* const scratch = reinterpret_cast<float*>(own.tile.get());
        uint32_t* const points = reinterpret_cast<uint32_t*>(scratch + 5 * kTilePixels);
        const size_t at = tile.first;
        const int count = tile.count();
        std::memcpy(scratch, &smoothness_->weight[at * S], count * S * sizeof(float));
        std::memcpy(points, &smoothness_->point[at * S], count * S * sizeof(uint32_t));
        for (int k = 0; k < count; ++k) {
            const int p = appearance_->order[at + k];
            for (int i = 0; i < S; ++i) {
                smoothness_->weight[(at + k) * S + i] = scratch[p * S + i];
                smoothness_->point[(at + k) * S + i] = points[p * S + i] * width_;
            }
        }
        if (folded_) return;
        for (Buffer<float>* factors : {&smoothness_->before, &smoothness_->after}) {
            std::memcpy(scratch, &(*factors)[at], count * sizeof(float));
            for (int k = 0; k < count; ++k) (*factors)[at + k] = scratch[appearance_->order[at + k]];
        }
    }

    // One tile of one iteration: groups are collected to a block of pixels, whose logits become marginals and are
    // splatted.
    template <bool Scaled>
    void tile(int index, bool slices, bool last, Floats* const (&from)[2], const Rows (&rows)[2], Share& own) {
        const Tile tile(image_, index);
        const uint32_t* group = appearance_->group.data() + size_t(appearance_->first_group[index]) * (A + 1);
        const uint32_t* const end = appearance_->group.data() + size_t(appearance_->first_group[index + 1]) * (A + 1);
        size_t pixel = tile.first;
        Floats* const block = own.block.get();
        while (group < end) {
            const uint32_t* const first_group = group;
            const size_t first = pixel;
            Floats most = all(kLowest);
            for (; group < end && pixel - first < kBlock; group += A + 1) {
                Floats* const logits = block + (pixel - first) * width_;
                if (slices) {
                    chunks([&](auto width, int chunk) {
                        slice<width.value, Scaled>(group, pixel, chunk, from, logits, most);
                    });
                } else {
                    std::memcpy(logits, &unary_[pixel * width_], group[0] * width_ * sizeof(Floats));
                }
                pixel += group[0];
            }
            const int count = int(pixel - first);
            if (slices && model_.compatibility)
                compatible(first, count, block, reinterpret_cast<float*>(own.message.get()));
            // Messages >= 0 leave the sum of the exponentials at least 1, since the largest unary is 0
            if (Scaled || lanes_max(most)[0] > kHighest) softmax<true>(block, count);
            else softmax<false>(block, count);
            if (last) {
                for (int k = 0; k < count; ++k) {
                    Floats* const row = own.tile.get() + appearance_->order[first + k] * width_;
                    std::memcpy(row, block + k * width_, width_ * sizeof(Floats));
                }
                continue;
            }
            size_t at = first;
            for (const uint32_t* g = first_group; g < group; g += A + 1) {
                const Floats* const marginals = block + (at - first) * width_;
                chunks([&](auto width, int chunk) {
                    if (rows[0].start || rows[1].start) splat<width.value, Scaled, true>(g, at, chunk, marginals, rows);
                    else splat<width.value, Scaled, false>(g, at, chunk, marginals, rows);
                });
                at += g[0];
            }
        }
        if (last) store(tile, own);
    }

    void store(const Tile& tile, const Share& own) const {
        for (int y = 0; y < tile.height; ++y) {
            for (int x = 0; x < tile.width; x += kLanes) {
                const int valid = std::min(kLanes, tile.width - x);
                const Floats* const rows = own.tile.get() + (y * tile.width + x) * width_;
                for (int b = 0; b < width_; ++b) {
                    Floats part[kLanes] = {};
                    for (int i = 0; i < valid; ++i) part[i] = rows[i * width_ + b];
                    transpose(part);
                    for (int i = 0; i < kLanes && b * kLanes + i < model_.classes; ++i) {
                        const size_t pixel = size_t(tile.y + y) * image_.width + tile.x + x;
                        write(part[i], out_ + (b * kLanes + i) * image_.pixels() + pixel, valid);
                    }
                }
            }
        }
    }

    // Calls visit for every three vectors of a row, and for what is left: as many as fit the registers for six points.
    template <class Visit>
    void chunks(const Visit& visit) const {
        int chunk = 0;
        for (; chunk + 3 <= width_; chunk += 3) visit(std::integral_constant<int, 3>{}, chunk);
        if (width_ - chunk == 2) visit(std::integral_constant<int, 2>{}, chunk);
        if (width_ - chunk == 1) visit(std::integral_constant<int, 1>{}, chunk);
    }

    // Logits of the pixels of a group: unary plus messages; only the messages where a compatibility follows.
    template <int B, bool Scaled>
    void slice(const uint32_t* group, size_t pixel, int chunk, Floats* const (&from)[2], Floats* logits,
               Floats& most) const {
        Floats corner[A][B];
        for (int i = 0; i < A; ++i) {
            const Floats* const row = from[0] + group[1 + i] + chunk;
            for (int b = 0; b < B; ++b) corner[i][b] = row[b];
        }
        const float* a = &appearance_->weight[pixel * A];
        const float* s = &smoothness_->weight[pixel * S];
        const uint32_t* point = &smoothness_->point[pixel * S];
        const Floats* unary = &unary_[pixel * width_ + chunk];
        Floats top = most;
        for (uint32_t k = 0; k < group[0]; ++k, a += A, s += S, point += S) {
            Floats sum[B];
            for (int b = 0; b < B; ++b) sum[b] = Scaled ? Floats{} : unary[k * width_ + b];
            for (int i = 0; i < S; ++i) {
                const Floats* const row = from[1] + point[i] + chunk;
                for (int b = 0; b < B; ++b) sum[b] = fma(all(s[i]), row[b], sum[b]);
            }
            if (Scaled) {
                Floats message[B];
                for (int b = 0; b < B; ++b) message[b] = Floats{};
                for (int i = 0; i < A; ++i)
                    for (int b = 0; b < B; ++b) message[b] = fma(all(a[i]), corner[i][b], message[b]);
                for (int b = 0; b < B; ++b) {
                    sum[b] *= weights_[width_ + chunk + b] * smoothness_->after[pixel + k];
                    sum[b] = fma(message[b], weights_[chunk + b] * appearance_->after[pixel + k], sum[b]);
                    if (!model_.compatibility) sum[b] += unary[k * width_ + b];
                }
            } else {
                for (int i = 0; i < A; ++i)
                    for (int b = 0; b < B; ++b) sum[b] = fma(all(a[i]), corner[i][b], sum[b]);
            }
            for (int b = 0; b < B; ++b) {
                top = larger(top, sum[b]);
                logits[k * width_ + chunk + b] = sum[b];
            }
        }
        most = top;
    }

    // logits = -U - mu (messages)
    void compatible(size_t first, int count, Floats* block, float* message) const {
        for (int k = 0; k < count; ++k) {
            Floats* const row = block + k * width_;
            std::memcpy(message, row, model_.classes * sizeof(float));
            std::memcpy(row, &unary_[(first + k) * width_], width_ * sizeof(Floats));
            for (int column = 0; column < model_.classes; ++column) {
                const Floats factor = all(-message[column]);
                for (int b = 0; b < width_; ++b) row[b] = fma(factor, compatibility_[column * width_ + b], row[b]);
            }
        }
    }

    template <bool Subtract>
    void softmax(Floats* block, int count) const {
        for (int k = 0; k < count; ++k) {
            Floats* const row = block + k * width_;
            Floats most = {}, sum = {};
            if (Subtract) {
                most = row[0];
                for (int b = 1; b < width_; ++b) most = larger(most, row[b]);
                most = lanes_max(most);
            }
            for (int b = 0; b < width_; ++b) {
                row[b] = exponential(larger(Subtract ? row[b] - most : row[b], all(kLowest)));
                sum += row[b];
            }
            const Floats scale = 1.0f / lanes_sum(sum);
            for (int b = 0; b < width_; ++b) row[b] *= scale;
        }
    }

    template <int B, bool Scaled, bool Split>
    void splat(const uint32_t* group, size_t pixel, int chunk, const Floats* marginals, const Rows (&rows)[2]) const {
        Floats corner[A][B];
        for (int i = 0; i < A; ++i) {
            const Floats* const row = rows[0].at<Split>(group[1 + i]) + chunk;
            for (int b = 0; b < B; ++b) corner[i][b] = row[b];
        }
        const Rows smoothness = rows[1];
        const float* a = &appearance_->weight[pixel * A];
        const float* s = &smoothness_->weight[pixel * S];
        const uint32_t* point = &smoothness_->point[pixel * S];
        for (uint32_t k = 0; k < group[0]; ++k, a += A, s += S, point += S) {
            Floats q[B];
            for (int b = 0; b < B; ++b) q[b] = marginals[k * width_ + chunk + b];
            for (int i = 0; i < A; ++i) {
                const Floats factor = all(Scaled ? a[i] * appearance_->before[pixel + k] : a[i]);
                for (int b = 0; b < B; ++b) corner[i][b] = fma(factor, q[b], corner[i][b]);
            }
            for (int i = 0; i < S; ++i) {
                const Floats factor = all(Scaled ? s[i] * smoothness_->before[pixel + k] : s[i]);
                Floats* const row = smoothness.at<Split>(point[i]) + chunk;
                for (int b = 0; b < B; ++b) row[b] = fma(factor, q[b], row[b]);
            }
        }
        for (int i = 0; i < A; ++i) {
            Floats* const row = rows[0].at<Split>(group[1 + i]) + chunk;
            for (int b = 0; b < B; ++b) row[b] = corner[i][b];
        }
    }

    // Adds the private rows of all threads to the lattice; each thread does its share of the rows.
    void gather(Floats* rows, int lattice, int thread) const {
        for (const Share& other : shares_) {
            const size_t spare = other.spare[lattice] * width_, base = size_t(other.lowest[lattice]) * width_;
            const size_t from = spare * thread / model_.threads, to = spare * (thread + 1) / model_.threads;
            for (size_t i = from; i < to; ++i) rows[base + i] += other.private_rows[lattice][i];
            if (model_.threads > 2) barrier_.wait();  // private rows of three threads may overlap
        }
    }

    // One axis of the blur, 1/2 1 1/2 along each chain, in place (Adams et al., Sec. 3.2).
    template <int E>
    void blur(const Lattice<E, E != 2>& lattice, int axis, int thread, Floats* rows) const {
        const uint32_t* const chain = lattice.chain[axis].data();
        const size_t from = lattice.part[axis][thread], to = lattice.part[axis][thread + 1];
        chunks([&](auto width, int chunk) {
            constexpr int B = width.value;
            Floats previous[B], here[B];
            for (int b = 0; b < B; ++b) previous[b] = Floats{};
            for (size_t i = from; i < to;) {
                Floats* row = rows + size_t(chain[i] >> 1) * width_ + chunk;
                for (int b = 0; b < B; ++b) here[b] = row[b];
                while (!(chain[i] & 1)) {
                    const Floats* const soon = rows + size_t(chain[i + kAhead] >> 1) * width_ + chunk;
                    __builtin_prefetch(soon, 1);
                    __builtin_prefetch(soon + B - 1, 1);
                    Floats* const next = rows + size_t(chain[++i] >> 1) * width_ + chunk;
                    for (int b = 0; b < B; ++b) {
                        const Floats ahead = next[b];
                        row[b] = fma(all(0.5f), previous[b] + ahead, here[b]);
                        previous[b] = here[b];
                        here[b] = ahead;
                    }
                    row = next;
                }
                for (int b = 0; b < B; ++b) {
                    row[b] = fma(all(0.5f), previous[b], here[b]);
                    previous[b] = Floats{};
                }
                ++i;
            }
        });
    }

    const Image& image_;
    const Model& model_;
    float* const out_;
    const int width_;  // vectors of a row
    bool folded_ = true;
    std::unique_ptr<Lattice<D, true>> appearance_;
    std::unique_ptr<Lattice<2, false>> smoothness_;
    Buffer<Floats> unary_, values_[2][2], weights_, compatibility_;
    std::vector<Share> shares_;
    mutable Barrier barrier_;
};

}  // namespace

// Marginals of one image. `limit` is the number of bytes that may be allocated for unaries and lattice values.
// Returns 0, or how many bytes are needed where `limit` is too little, or a negative reason: -1 deviations too small
// for the image, -2 out of memory, -3 anything else. No exception leaves this function.
extern "C" int64_t dense_crf(const float* unary, const float* levels, float* marginals, int classes, int height,
                             int width, int channels, const float* appearance, float theta_alpha, float theta_beta,
                             const float* smoothness, float theta_gamma, const float* compatibility, int iterations,
                             int normalisation, int threads, uint64_t limit) {
    const Image image{height, width, channels, levels};
    threads = std::max(1, std::min(threads, image.tiles()));
    Model model{classes,     iterations, normalisation, threads,    theta_alpha,  theta_beta,
                theta_gamma, appearance, smoothness,    compatibility};
    auto run = [&]() -> int64_t {
        if (channels == 3) return int64_t(Inference<5>(image, model, marginals)(unary, limit));
        return int64_t(Inference<3>(image, model, marginals)(unary, limit));
    };
    try {
        try {
            return run();
        } catch (const std::system_error&) {
            model.threads = 1;  // no more threads to be had
            return run();
        }
    } catch (const OutOfRange&) {
        return -1;
    } catch (const std::bad_alloc&) {
        return -2;
    } catch (...) {
        return -3;
    }
}
