// Products of float32 panels against panels that are kept as codes, in turns (resident.py).

#include "../embedcomp/kernels/engine.cpp"

#include <ctime>
#include <random>

namespace {

struct Weight {
  int64_t inputs, outputs;  // outputs: whole panels of 64
  const uint8_t* codes;
  const float *scales, *offsets, *words;
};

struct Codes {
  void (*floats)(const Weight&, float* buffer, float* out);
  void (*product)(const Weight&, const Linear&, int64_t rows, float* buffer);
  int64_t bits;
};

#define PANEL_VECTORS 1
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace codes_avx2 {
using namespace avx2;
#include "resident.inc"
}
#pragma GCC pop_options
#undef PANEL_VECTORS

#define PANEL_VECTORS 4
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace codes_avx512 {
using namespace avx512;
#include "resident.inc"
}
#pragma GCC pop_options
#undef PANEL_VECTORS

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

}  // namespace

extern "C" {

// Seconds of `calls` products of `batch` rows with each of `layers` weights: times [rounds][2], of
// floats and of codes, which take turns to begin. Returns how many outputs differ in any bit, or -1
// where this CPU has no vectors for it.
int64_t resident_times(int32_t kind, int64_t inputs, int64_t outputs, int64_t layers,
                       int64_t batch, int64_t rounds, int64_t calls, double* times) {
  const Kernels* best = all_kernels()[0];
  if (best == &any_cpu::kernels) return -1;
  const bool narrow = best == &avx2::kernels;
  const Codes& codes = narrow ? codes_avx2::kinds[kind] : codes_avx512::kinds[kind];
  const auto linear = narrow ? avx2::kernels.linear[kFloats] : avx512::kernels.linear[kFloats];
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  const auto drawn = [&](int64_t n) {
    std::vector<float> found(n);
    for (float& x : found) x = normal(random);
    return found;
  };
  const std::vector<float> scales = drawn(outputs), offsets = drawn(outputs), words = drawn(16);
  const std::vector<float> x = drawn(batch * inputs);
  std::vector<std::vector<uint8_t>> packed(layers);
  std::vector<Weight> weights;
  std::vector<std::vector<float>> floats(layers);
  std::vector<float> buffer(64 * inputs), out[2];
  for (int64_t i = 0; i < layers; ++i) {
    packed[i].resize(inputs * outputs * codes.bits / 8);
    for (uint8_t& code : packed[i]) code = uint8_t(random());
    weights.push_back({inputs, outputs, packed[i].data(), scales.data(), offsets.data(), words.data()});
    floats[i].resize(inputs * outputs);
    codes.floats(weights[i], buffer.data(), floats[i].data());
  }
  for (auto& found : out) found.resize(batch * outputs);
  const auto run = [&](int which) {
    for (int64_t i = 0; i < layers; ++i)
      for (int64_t first = 0; first < batch; first += 48) {
        const int64_t rows = std::min<int64_t>(48, batch - first);
        Linear op{};
        op.a = x.data() + first * inputs;
        op.lda = inputs;
        op.out = out[which].data() + first * outputs;
        op.out_stride = outputs;
        if (which == 0) {
          linear(op, rows, floats[i].data(), inputs, outputs);
        } else {
          codes.product(weights[i], op, rows, buffer.data());
        }
      }
  };
  for (int64_t round = 0; round < rounds; ++round)
    for (int turn = 0; turn < 2; ++turn) {
      const int which = int((round + turn) % 2);
      run(which);  // what the other one left in the caches is not its fault
      const double began = now();
      for (int64_t call = 0; call < calls; ++call) run(which);
      times[2 * round + which] = now() - began;
    }
  int64_t differ = 0;
  for (size_t i = 0; i < out[0].size(); ++i)
    differ += std::memcmp(&out[0][i], &out[1][i], sizeof(float)) != 0;
  return differ;
}

}  // extern "C"
