// Calls one of the kernels, with -DDENSE dense_crf, with random arguments in arrays of exactly their size, for AddressSanitizer and
// UndefinedBehaviorSanitizer to watch. Usage: sanitized <calls>. Prints how many were computed, where others were refused;
// exit status 1 where a pixel's classes do not sum to 1.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

extern "C" int64_t dense_crf(const float* unary, const float* levels, float* marginals, int classes, int height,
                             int width, int channels, const float* appearance, float theta_alpha, float theta_beta,
                             const float* smoothness, float theta_gamma, const float* compatibility, int iterations,
                             int normalisation, int threads, uint64_t limit);
extern "C" int conv_crf(const float* logs, const float* images, const int* offsets, const float* smoothness,
                        const float* w_appearance, const float* w_smoothness, const float* compatibility,
                        float per_pixel, float per_level, int number, int classes, int channels, int height, int width,
                        int half, int blur, int iterations, int normalization, int threads, float* out);

namespace {

std::mt19937 generator(0);

int whole(int least, int most) { return std::uniform_int_distribution<int>(least, most)(generator); }
float real(float least, float most) { return std::uniform_real_distribution<float>(least, most)(generator); }
template <class T>
T one_of(std::initializer_list<T> values) {
    return values.begin()[whole(0, int(values.size()) - 1)];
}
std::vector<float> reals(size_t count, float least, float most) {
    std::vector<float> values(count);
    for (float& value : values) value = real(least, most);
    values.shrink_to_fit();
    return values;
}
// Odd sizes, single pixels, lanes and tiles that reach over the border
int side() { return one_of({1, 1, 2, 3, 7, 8, 9, 15, 17, 31, 32, 33, 40, 65}); }

struct Weights {
    std::vector<float> appearance, smoothness, compatibility;
    explicit Weights(int classes)
        : appearance(reals(classes, -1, 5)), smoothness(reals(classes, -1, 5)) {
        if (whole(0, 1)) {  // equal ones take another way through both kernels
            std::fill(appearance.begin(), appearance.end(), 3.0f);
            std::fill(smoothness.begin(), smoothness.end(), 2.0f);
        }
        if (whole(0, 2) == 0) compatibility = reals(size_t(classes) * classes, -1, 1);
    }
    const float* matrix() const { return compatibility.empty() ? nullptr : compatibility.data(); }
};

void check(const std::vector<float>& marginals, int number, int classes, size_t pixels) {
    for (int n = 0; n < number; ++n) {
        for (size_t p = 0; p < pixels; ++p) {
            float sum = 0;
            for (int c = 0; c < classes; ++c) sum += marginals[(size_t(n) * classes + c) * pixels + p];
            if (!(std::fabs(sum - 1) < 1e-3f)) {
                std::printf("classes sum to %g\n", sum);
                std::exit(1);
            }
        }
    }
}

#ifdef DENSE
bool call() {
    const int classes = one_of({1, 2, 3, 7, 8, 9, 21, 25}), height = side(), width = side(), channels = one_of({1, 3});
    const size_t pixels = size_t(height) * width;
    const std::vector<float> unary = reals(pixels * classes, 0, 10);
    std::vector<float> levels = reals(pixels * channels, 0, 255);
    if (whole(0, 2) == 0) std::fill(levels.begin(), levels.end(), real(0, 255));  // one simplex for many pixels
    std::vector<float> marginals(pixels * classes);
    const Weights weights(classes);
    auto theta = [] { return one_of({1e-11f, 1e-6f, 1e-3f, 0.1f, 1.0f, 5.0f, 60.0f, 1e6f, 3e38f}); };
    const uint64_t limit = whole(0, 9) ? uint64_t(1) << 40 : 1000;
    const int64_t status = dense_crf(unary.data(), levels.data(), marginals.data(), classes, height, width, channels,
                                     weights.appearance.data(), theta(), theta(), weights.smoothness.data(), theta(),
                                     weights.matrix(), whole(0, 3), whole(0, 3), whole(1, 4), limit);
    if (status == 0) check(marginals, 1, classes, pixels);
    return status == 0;
}

#else
bool call() {
    const int classes = one_of({1, 2, 3, 7, 8, 9, 17, 21}), height = side(), width = side(), channels = one_of({1, 3});
    const int number = whole(1, 2), blur = one_of({1, 1, 2, 3, 4, 100});
    const int rows = (height + blur - 1) / blur, columns = (width + blur - 1) / blur;
    const int radius = one_of({0, 1, 2, 5, 20});
    std::vector<int> offsets;
    for (int dy = 0; dy <= std::min(radius, rows - 1); ++dy)
        for (int dx = dy ? -radius : 0; dx <= radius; ++dx)
            if (std::abs(dx) < columns) offsets.insert(offsets.end(), {dy, dx});
    offsets.shrink_to_fit();
    const size_t pixels = size_t(height) * width;
    const std::vector<float> logs = reals(pixels * classes * number, -80, 0);
    const std::vector<float> images = reals(size_t(rows) * columns * channels * number, 0, 255);
    const std::vector<float> smoothness = reals(offsets.size() / 2, 0, 1);
    const Weights weights(classes);
    std::vector<float> marginals(pixels * classes * number);
    const int failed = conv_crf(logs.data(), images.data(), offsets.data(), smoothness.data(), weights.appearance.data(),
                                weights.smoothness.data(), weights.matrix(), one_of({0.0f, 1e-3f, 1.0f, 5e21f}),
                                one_of({0.0f, 1e-3f, 1.0f, 5e21f}), number, classes, channels, height, width,
                                int(offsets.size() / 2), blur, whole(0, 3), whole(0, 3), whole(1, 4), marginals.data());
    if (!failed) check(marginals, number, classes, pixels);
    return !failed;
}
#endif

}  // namespace

int main(int, char** arguments) {
    const int calls = std::atoi(arguments[1]);
    int computed = 0;
    for (int i = 0; i < calls; ++i) computed += call();
    std::printf("%d\n", computed);
}
