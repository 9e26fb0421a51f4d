// Scores rows by a program (engine.h): lookups, decoders, products and all, in one call.
//
// Rows go through the whole program a block at a time, so that what one operation writes is still
// in the cache when the next one reads it. Plain C functions, called through ctypes (native.py);
// several threads may call them at once.

#include "engine.h"
#include "slots.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_X86_KERNELS
#include <immintrin.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace {

inline void prefetch(const uint8_t* at) {
#if defined(__x86_64__)
  asm volatile("prefetcht1 %0" : : "m"(*at));  // the builtin is dropped from loops as if for nothing
#else
  __builtin_prefetch(at);
#endif
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float float_at(const uint8_t* x) {
  float value;
  std::memcpy(&value, x, 4);
  return value;
}

inline float half_at(const uint8_t* x) {
  uint16_t h;
  std::memcpy(&h, x, 2);
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | ((rest & 0x3ff) << 13));
  if (rest >= 0x400) return from_bits(sign | ((rest << 13) + 0x38000000));
  const float value = float(rest) * 5.9604644775390625e-8f;  // a whole number of 2^-24
  return sign ? -value : value;
}

inline float low_brain(uint32_t pair) { return from_bits(pair << 16); }
inline float high_brain(uint32_t pair) { return from_bits(pair & 0xffff0000u); }

inline uint32_t brain_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;  // NaN stays NaN
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

inline uint32_t pair_of_brain(float low, float high) {
  return brain_of(low) | (brain_of(high) << 16);
}

// The stored row of an id by a ranked index (storage/index.py): the first row of its tier, and as
// many further as there are ids of that tier before it.
inline int64_t ranked_row(const Stored& t, int64_t id) {
  constexpr int64_t kBlock = 256, kWords = kBlock / 64;
  const int32_t counted = t.index_tiers - 1;
  const int32_t planes = 32 - __builtin_clz(uint32_t(counted));
  const int32_t* block =
      static_cast<const int32_t*>(t.map) + id / kBlock * (counted + planes * kBlock / 32);
  const int64_t at = id % kBlock / 64, bit = id % 64;
  const auto bits_of = [&](int32_t plane, int64_t word) {
    uint64_t bits;
    std::memcpy(&bits, block + counted + 2 * (plane * kWords + word), sizeof bits);
    return bits;
  };
  int32_t tier = 0;
  for (int32_t p = 0; p < planes; ++p) tier |= int32_t(bits_of(p, at) >> bit & 1) << p;
  int64_t rank = id - id % kBlock;
  if (tier < counted) {
    rank = block[tier];
  } else {
    for (int32_t other = 0; other < counted; ++other) rank -= block[other];
  }
  for (int64_t word = 0; word <= at; ++word) {
    uint64_t same = word < at ? ~uint64_t(0) : (uint64_t(1) << bit) - 1;
    for (int32_t p = 0; p < planes; ++p) same &= bits_of(p, word) ^ (uint64_t(tier >> p & 1) - 1);
    rank += __builtin_popcountll(same);
  }
  return std::min(t.firsts[tier] + rank, t.last);
}

// What SplitMix64 puts out first from the state x (storage/probes.py has these formulas in torch).
inline uint64_t splitmix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// Which of `number` parts of equal length, of all that 32 bits can be, a number of them is in.
inline uint64_t share(uint64_t half, uint64_t number) { return half * number >> 32; }

// Quotient and remainder by a number whose share of 2^64 - 1 is known, which a multiplication finds
// up to 2 too low (Granlund and Montgomery, PLDI 1994).
inline uint64_t divided(uint64_t x, uint64_t by, uint64_t part, uint64_t* rest) {
  __extension__ typedef unsigned __int128 Wide;
  uint64_t quotient = uint64_t(Wide(x) * part >> 64);
  uint64_t left = x - quotient * by;
  for (; left >= by; left -= by) ++quotient;
  *rest = left;
  return quotient;
}

// Which of a probe's rows a number of the table's ids reads.
inline uint64_t place_of(const Probe& p, uint64_t id) {
  const uint64_t rows = p.rows, salt = uint64_t(p.salt) << 32;
  if (p.kind == kHash) return share(splitmix64(id + salt) >> 32, rows);
  uint64_t place;
  if (p.kind == kDigit) {
    if (p.divisor > 1) id = divided(id, p.divisor, p.per_divisor, &place);
    if (id < rows) return id;
    divided(id, rows, p.per_row, &place);
    return place;
  }
  const uint64_t partition = divided(p.first + p.stride * id, rows, p.per_row, &place);
  if (partition == 0) return place;
  const uint64_t drawn = splitmix64(partition + salt);
  const uint64_t times = 1 + share(drawn >> 32, rows - 1), more = share(uint32_t(drawn), rows);
  divided(times * place + more, rows, p.per_row, &place);
  return place;
}

// How many stored rows an id reads: one of its own, where those of others are mixed.
inline int32_t reads_of(const Stored& t, int64_t id) {
  return id < t.own && t.combine != kConcat ? 1 : t.probe_count;
}

// The stored row of an id, which is in range, by one of its probes.
inline const uint8_t* probed_row(const Stored& t, int64_t id, int32_t which) {
  const int64_t row = id < t.own ? t.own_start + id * reads_of(t, id) + which
                                 : t.probes[which].start +
                                       int64_t(place_of(t.probes[which], uint64_t(id - t.own)));
  return t.rows + row * t.row_bytes;
}

// The stored row of an id, which is in range, where it reads but one.
inline const uint8_t* row_of(const Stored& t, int64_t id) {
  int64_t row = id;
  if (t.map == nullptr) {
    row = id < t.last ? id : t.last;
  } else if (t.map_bytes == 0) {
    row = ranked_row(t, id);
  } else if (t.map_bytes == 1) {
    row = static_cast<const uint8_t*>(t.map)[id];
  } else if (t.map_bytes == 2) {
    row = static_cast<const int16_t*>(t.map)[id];
  } else {
    row = static_cast<const int32_t*>(t.map)[id];
  }
  return t.rows + row * t.row_bytes;
}

// The tier of a kTiered row, the byte that the row begins in, and the bit.
inline const Stored& tier_of(const Stored& t, const uint8_t** row, int32_t* bit) {
  const int64_t place = *row - t.rows;
  const Stored* tier = t.tiers;
  int64_t first = 0;
  for (; place >= tier->last; ++tier) first = tier->last;
  if (tier->row_bits == 0) {
    *row = tier->rows + (place - first) * tier->row_bytes;
    *bit = 0;
  } else {
    const int64_t at = (place - first) * tier->row_bits;
    *row = tier->rows + at / 8;
    *bit = int32_t(at % 8);
  }
  return *tier;
}

// x [rows, inputs] times a packed weight, to out [rows, outputs].
struct Linear {
  const void* a;  // floats, or pairs of bfloat16
  int64_t lda;
  const float* init;  // the sums begin with this,
  int64_t init_stride;
  const float* times;  // so many times, if it is not null
  int64_t times_stride;
  float* out;
  int64_t out_stride;
  bool relu;
  bool brain_out;  // pairs of bfloat16 instead of floats
  const float* steps;    // of bytes: by row, and the byte of zero
  const int32_t* zeros;
  const float* scales;  // by output, and the sum of its bytes
  const int32_t* sums;
};

// Dot products of n vectors x with m vectors y.
struct Dots {
  const float* x;
  int64_t x_stride;
  const float* y;
  int64_t y_stride;
  int64_t n, m, width;
  bool brain_in;  // x and y are pairs of bfloat16 already
  const uint8_t* used;
  const int32_t* run;
  int32_t runs;
  float* out;
  int64_t out_stride;
};

struct LookUp {
  const Stored* table;
  const Ids* group;
  int64_t place;
  int64_t count;
  bool mean, counted;
  float* out;
  int64_t out_stride;
  float* scratch;  // two rows of numbers, where rows are mixed
};

struct Kernels {
  void (*linear[3])(const Linear&, int64_t rows, const void* weight, int64_t inputs,
                    int64_t outputs);
  void (*dots[2])(const Dots&, int64_t rows, float* memory);
  float (*multiply[3])(int64_t n);
  void (*to_brain)(const float* x, int64_t stride, int64_t rows, int64_t n, uint32_t* out,
                   int64_t out_stride);
  void (*to_bytes)(const float* x, int64_t stride, int64_t rows, int64_t n, uint32_t* out,
                   int64_t out_stride, float* steps, int32_t* zeros);
  void (*copy)(const float* x, int64_t stride, int64_t rows, int64_t n, float* out,
               int64_t out_stride);
  void (*unary)(const Op&, const float* x, float* out);
  void (*binary)(const Op&, const float* x, const float* y, float* out);
  void (*sum)(const Op&, const float* x, float* out);
  int64_t (*look_up)(const LookUp&, int64_t first, int64_t rows);
  void (*add_row)(const Stored&, const uint8_t* row, float weight, float* sum);
  void (*nearest)(const float* x, int64_t n, int64_t stride, int64_t columns, const float* words,
                  int64_t count, uint8_t* codes, int64_t codes_stride);
  void (*likest)(const float* x, int64_t n, int64_t stride, int64_t columns, const float* atoms,
                 int64_t count, const float* most, uint8_t* codes);
  void (*trellis)(const float* values, int64_t steps, const int32_t* column, int64_t columns,
                  const int32_t* bits, const float* matters, const float* words, uint8_t window,
                  float* costs, uint8_t* windows);
  void (*rest)();  // gives back what products took of this thread's registers
};

#if defined(__GNUC__)
#define INLINE inline __attribute__((always_inline))
#else
#define INLINE inline
#endif

namespace any_cpu {
#include "kernels.inc"
}

#ifdef HAS_X86_KERNELS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#include "kernels.inc"
}
#pragma GCC pop_options

#define HAS_VECTOR
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
#include "kernels.inc"
}
#pragma GCC pop_options

#define HAS_BRAIN
#define HAS_PERMUTE
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi,avx512vnni,prefer-vector-width=512")
namespace avx512_bf16 {
#include "kernels.inc"
}
#pragma GCC pop_options

#if __GNUC__ >= 11 && defined(__linux__)
#define HAS_TILES
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vbmi,avx512vnni,amx-tile,amx-bf16,amx-int8,prefer-vector-width=512")
namespace avx512_tiles {
#include "kernels.inc"
}
#pragma GCC pop_options

// Whether this process may use the matrix unit's registers, which Linux has to be asked for.
bool may_use_tiles() {
  constexpr long kAskFor = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, kAskFor, kTileData) == 0;
}
#endif
#endif

// The kernels that this CPU can run, the best first.
const std::vector<const Kernels*>& all_kernels() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> able;
#ifdef HAS_X86_KERNELS
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool brain = wide && __builtin_cpu_supports("avx512bf16") &&
                       __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#ifdef HAS_TILES
    if (brain && may_use_tiles()) able.push_back(&avx512_tiles::kernels);
#endif
    if (brain) able.push_back(&avx512_bf16::kernels);
    if (wide) able.push_back(&avx512::kernels);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      able.push_back(&avx2::kernels);
#endif
    able.push_back(&any_cpu::kernels);
    return able;
  }();
  return found;
}

std::atomic<int32_t> used_kernels{0};

const Kernels& chosen() { return *all_kernels()[used_kernels.load(std::memory_order_relaxed)]; }

// Where a buffer's row 0 begins, and how far the next one is; 0: all rows are one.
struct View {
  float* at;
  int64_t stride;
};

// Memory of one thread, kept between calls.
class Arena {
 public:
  float* take(int64_t floats) {
    if (int64_t(memory_.size()) < floats + 16) memory_.resize(floats + 16);
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory_.data());
    return reinterpret_cast<float*>((at + 63) / 64 * 64);
  }

 private:
  std::vector<float> memory_;
};

// Brings a stored row near.
void prefetch_stored(const Stored& t, const uint8_t* row) {
  int32_t bit;
  const int64_t bytes = t.kind == kTiered ? tier_of(t, &row, &bit).row_bytes : t.row_bytes;
  const uint8_t* last = row + bytes - 1;
  for (const uint8_t* at = row; at <= last; at += 64) prefetch(at);
  if ((reinterpret_cast<uintptr_t>(row) ^ reinterpret_cast<uintptr_t>(last)) & 64) prefetch(last);
}

class Run {
 public:
  Run(const Program& program, const Call& call, const float* user, float* memory, int64_t block)
      : p_(program), c_(call), kernels_(chosen()), block_(block), shared_(user != nullptr) {
    item_ = memory;
    user_ = shared_ ? const_cast<float*>(user) : item_ + block * p_.item_width;
    scratch_ = item_ + block * (p_.item_width + (shared_ ? 0 : p_.user_width));
    dots_ = scratch_ + 2 * block * p_.scratch + 64;
  }

  ~Run() { kernels_.rest(); }

  static int64_t memory(const Program& p, int64_t block) {
    return block * (p.item_width + p.user_width + 2 * p.scratch) + p.dots + 256;
  }

  // Rows [first, first + rows) through some operations, or the problem with them. While they are
  // computed, the stored rows of the `next` rows after them are brought near.
  Problem operations(const Op* ops, int64_t count, int64_t first, int64_t rows, int64_t next,
                     int64_t* bad) {
    int64_t look_ups = 0, near = 0;
    while (look_ups < count && ops[look_ups].kind == kLookUp) ++look_ups;
    for (int64_t i = 0; i < count; ++i) {
      const Problem problem = operation(ops[i], first, rows, bad);
      if (problem != kNone) return problem;
      if (i < look_ups || next == 0) continue;
      const int64_t until = look_ups * (i + 1 - look_ups) / (count - look_ups);
      for (; near < until; ++near) prefetch_rows(ops[near], first + rows, next);
    }
    return kNone;
  }

  void prefetch_all(const Op* ops, int64_t count, int64_t first, int64_t rows) const {
    for (int64_t i = 0; i < count && ops[i].kind == kLookUp; ++i)
      prefetch_rows(ops[i], first, rows);
  }

  View view(int64_t buffer) const {
    const Buffer& b = p_.buffers[buffer];
    if (b.constant != nullptr) return {const_cast<float*>(b.constant), 0};
    if (b.stage == 1) return {user_ + b.at * (shared_ ? 1 : block_), shared_ ? 0 : b.width};
    return {item_ + b.at * block_, b.width};
  }

 private:
  Problem operation(const Op& op, int64_t first, int64_t rows, int64_t* bad) {
    switch (op.kind) {
      case kLookUp:
        return look_up(op, first, rows, bad);
      case kInput:
        return input(op, first, rows, bad);
      case kLinear:
        linear(op, rows);
        break;
      case kDots:
        dots(op, rows);
        break;
      case kUnary:
        unary(op, rows);
        break;
      case kBinary:
        binary(op, rows);
        break;
      default:
        sum(op, rows);
    }
    return kNone;
  }

  // The pieces of an operand beside each other; they stay where they are if there is but one.
  View bring(const Piece* pieces, int32_t count, int64_t rows, float*& scratch) {
    if (count == 1) {
      const View v = view(pieces->buffer);
      return {v.at + pieces->at, v.stride};
    }
    int64_t width = 0;
    for (int32_t i = 0; i < count; ++i) width += pieces[i].width;
    int64_t at = 0;
    for (int32_t i = 0; i < count; ++i) {
      const View v = view(pieces[i].buffer);
      kernels_.copy(v.at + pieces[i].at, v.stride, rows, pieces[i].width, scratch + at, width);
      at += pieces[i].width;
    }
    const View brought{scratch, width};
    scratch += rows * width;
    return brought;
  }

  void prefetch_rows(const Op& op, int64_t first, int64_t rows) const {
    const Stored& t = *op.table;
    const Ids& group = c_.groups[c_.group[op.which]];
    const int64_t place = c_.place[op.which];
    for (int64_t r = first; r < first + rows; ++r) {
      int64_t at = r * group.stride + place;
      if (group.offsets != nullptr) {
        at = group.offsets[place * group.batch + r];
        if (at == group.offsets[place * group.batch + r + 1]) continue;
      }
      const int64_t id = group.ids[at];
      if (id < 0 || id >= t.num_ids) continue;
      if (t.probes == nullptr) {
        prefetch_stored(t, row_of(t, id));
      } else {
        for (int32_t i = 0; i < reads_of(t, id); ++i) prefetch_stored(t, probed_row(t, id, i));
      }
    }
  }

  Problem look_up(const Op& op, int64_t first, int64_t rows, int64_t* bad) {
    const Ids& group = c_.groups[c_.group[op.which]];
    const View out = view(op.out);
    const LookUp what{op.table, &group, c_.place[op.which], op.times, op.mean != 0,
                      op.counted != 0, out.at + op.out_at, out.stride, scratch_};
    const int64_t place = kernels_.look_up(what, first, rows);
    if (place < 0) return kNone;
    bad[0] = op.which;
    bad[1] = group.ids[place];
    return kBadId;
  }

  Problem input(const Op& op, int64_t first, int64_t rows, int64_t* bad) {
    const View out = view(op.out);
    const int64_t stride = c_.stride[op.which];
    const float* x = c_.dense[op.which] + first * stride + op.inputs;
    kernels_.copy(x, stride, rows, op.outputs, out.at + op.out_at, out.stride);
    for (int64_t r = 0; r < rows; ++r) {
      float none = 0.0f;
      for (int32_t c = 0; c < op.outputs; ++c) none += x[r * stride + c] * 0.0f;
      if (none != 0.0f) {  // NaN: a number was not finite
        bad[0] = op.which / 2;
        bad[1] = first + r;
        return kNotFinite;
      }
    }
    return kNone;
  }

  void linear(const Op& op, int64_t rows) {
    float* scratch = scratch_;
    View x = bring(op.x, op.x_pieces, rows, scratch);
    const View out = view(op.out);
    const int64_t out_stride = op.times > 1 ? op.outputs : out.stride;
    const int64_t vectors = rows * op.times, inputs = op.inputs, whole = op.times * inputs;
    if (op.times > 1 && x.stride != whole) {  // vectors of several rows lie as one row's do
      kernels_.copy(x.at, x.stride, rows, whole, scratch, whole);
      x = {scratch, whole};
      scratch += rows * whole;
    }
    const int64_t lda = op.times > 1 ? inputs : x.stride;
    Linear product{};
    product.a = x.at;
    product.lda = lda;
    product.init = op.bias;
    product.out = out.at + op.out_at;
    product.out_stride = out_stride;
    product.relu = op.relu != 0;
    product.brain_out = op.brain_out != 0;
    if (op.counts.buffer >= 0) {
      const View counts = view(op.counts.buffer);
      product.times = counts.at + op.counts.at;
      product.times_stride = counts.stride;
    }
    if (op.init >= 0) {
      const View init = view(op.init);
      product.init = init.at;
      product.init_stride = init.stride;
    }
    if (op.format == kFloats)
      return kernels_.linear[kFloats](product, vectors, op.weight, inputs, op.outputs);
    uint32_t* words = reinterpret_cast<uint32_t*>(scratch);
    const int64_t each = op.format == kPairs ? (inputs + 1) / 2 : (inputs + 3) / 4;
    if (op.format == kPairs) {
      kernels_.to_brain(x.at, lda, vectors, inputs, words, each);
    } else {
      float* steps = scratch + vectors * each;
      int32_t* zeros = reinterpret_cast<int32_t*>(steps + vectors);
      kernels_.to_bytes(x.at, lda, vectors, inputs, words, each, steps, zeros);
      product.steps = steps;
      product.zeros = zeros;
      product.scales = op.scales;
      product.sums = op.sums;
    }
    product.a = words;
    product.lda = each;
    kernels_.linear[op.format](product, vectors, op.weight, each, op.outputs);
  }

  void dots(const Op& op, int64_t rows) {
    float* scratch = scratch_;
    const View x = bring(op.x, op.x_pieces, rows, scratch);
    // without y, of x with itself
    const View y = op.y_pieces == 0 ? x : bring(op.y, op.y_pieces, rows, scratch);
    const View out = view(op.out);
    const Dots what{x.at,    x.stride, y.at,   y.stride, op.times,           op.outputs, op.inputs,
                    op.brain_in != 0, op.used, op.run,   op.runs, out.at + op.out_at, out.stride};
    kernels_.dots[op.format](what, rows, dots_);
  }

  void unary(const Op& op, int64_t rows) {
    float* scratch = scratch_;
    const View x = bring(op.x, op.x_pieces, rows, scratch), out = view(op.out);
    if (op.brain_out) {  // a copy, as dots read it
      uint32_t* words = reinterpret_cast<uint32_t*>(out.at + op.out_at);
      kernels_.to_brain(x.at, x.stride, rows, op.outputs, words, out.stride);
      return;
    }
    for (int64_t r = 0; r < rows; ++r)
      kernels_.unary(op, x.at + r * x.stride, out.at + op.out_at + r * out.stride);
  }

  void binary(const Op& op, int64_t rows) {
    float* scratch = scratch_;
    const View x = bring(op.x, op.x_pieces, rows, scratch);
    const View y = bring(op.y, op.y_pieces, rows, scratch);
    const View out = view(op.out);
    for (int64_t r = 0; r < rows; ++r)
      kernels_.binary(op, x.at + r * x.stride, y.at + r * y.stride,
                      out.at + op.out_at + r * out.stride);
  }

  void sum(const Op& op, int64_t rows) {
    float* scratch = scratch_;
    const View x = bring(op.x, op.x_pieces, rows, scratch), out = view(op.out);
    for (int64_t r = 0; r < rows; ++r)
      kernels_.sum(op, x.at + r * x.stride, out.at + op.out_at + r * out.stride);
  }

  const Program& p_;
  const Call& c_;
  const Kernels& kernels_;
  const int64_t block_;
  const bool shared_;
  float *item_, *user_, *scratch_, *dots_;
};

thread_local Arena arena;

// A call whose inputs have been checked, with lengths summed up to offsets, for as long as the next
// one is not made.
class Checked {
 public:
  // The call, or null where an input's bags do not fit its ids.
  const Call* of(const Call& call, int64_t* bad) {
    groups_.assign(call.groups, call.groups + call.count);
    call_ = call;
    call_.groups = groups_.data();
    int64_t needed = 0;
    for (const Ids& group : groups_)
      if (group.lengths != nullptr) needed += group.features * group.batch + 1;
    if (int64_t(offsets_.size()) < needed) offsets_.resize(needed);
    int64_t* at = offsets_.data();
    for (Ids& group : groups_) {
      if (group.lengths == nullptr && group.offsets == nullptr) continue;
      const int64_t bags = group.features * group.batch;
      bool fits = true;
      if (group.lengths != nullptr) {
        int64_t sum = at[0] = 0;
        for (int64_t i = 0; i < bags && fits; ++i) {  // no further: sums would overflow
          fits = group.lengths[i] >= 0 && group.lengths[i] <= group.total - sum;
          at[i + 1] = sum += fits ? group.lengths[i] : 0;
        }
        fits &= sum == group.total;
        group.offsets = at;
        at += bags + 1;
      } else {
        fits = group.offsets[0] == 0 && group.offsets[bags] == group.total;
        for (int64_t i = 0; i < bags; ++i) fits &= group.offsets[i] <= group.offsets[i + 1];
      }
      if (!fits) {
        bad[0] = &group - groups_.data();
        return nullptr;
      }
    }
    return &call_;
  }

 private:
  std::vector<Ids> groups_;
  std::vector<int64_t> offsets_;
  Call call_{};
};

thread_local Checked checked;

#include "slots.inc"

}  // namespace

extern "C" {

// What the user's stage gives for one row: user [user_width]. Returns a Problem.
int32_t embedcomp_user(const Program* p, const Call* given, float* user, int64_t* bad) {
  const Call* call = checked.of(*given, bad);
  if (call == nullptr) return kBadBags;
  Run run(*p, *call, user, arena.take(Run::memory(*p, 1)), 1);
  run.prefetch_all(p->user_ops, p->user_count, 0, 1);
  return run.operations(p->user_ops, p->user_count, 0, 1, 0, bad);
}

// Scores of rows [first, last): probabilities, or logits. user: what embedcomp_user gave for all of
// them, or null where each row has its own. Returns a Problem.
int32_t embedcomp_score(const Program* p, const Call* given, const float* user, int64_t first,
                        int64_t last, int32_t probabilities, float* scores, int64_t* bad) {
  const Call* call = checked.of(*given, bad);
  if (call == nullptr) return kBadBags;
  const int64_t block = std::min(p->block, std::max<int64_t>(last - first, 1));
  Run run(*p, *call, user, arena.take(Run::memory(*p, block)), block);
  const int64_t at_first = std::min(block, last - first);
  if (user == nullptr) run.prefetch_all(p->user_ops, p->user_count, first, at_first);
  run.prefetch_all(p->item_ops, p->item_count, first, at_first);
  for (int64_t row = first; row < last; row += block) {
    const int64_t rows = std::min(block, last - row), next = std::min(block, last - row - rows);
    Problem problem = kNone;
    if (user == nullptr)
      problem = run.operations(p->user_ops, p->user_count, row, rows, next, bad);
    if (problem == kNone)
      problem = run.operations(p->item_ops, p->item_count, row, rows, next, bad);
    if (problem != kNone) return problem;
    const View out = run.view(p->out);
    for (int64_t r = 0; r < rows; ++r) {
      const float logit = out.at[r * out.stride];
      if (!std::isfinite(logit)) {
        bad[1] = row + r;
        return kNoScore;
      }
      scores[row + r] = probabilities ? float(1.0 / (1.0 + std::exp(-double(logit)))) : logit;
    }
  }
  return kNone;
}

// Find out what each shard is to be asked for, for a call. Returns a Problem.
int32_t embedcomp_route(const Front* front, const int32_t* owner, const Call* given, Routed* out,
                        int64_t* bad) {
  return routing.route(*front, owner, *given, *out, bad);
}

// Add a shard's answer to the call that this thread has routed; 0: it is not what was asked for.
int32_t embedcomp_gather(const Front* front, int64_t shard, const float* answer, int64_t numbers) {
  return routing.gather(*front, shard, answer, numbers);
}

// Have unknown ids in the place of those that a shard was asked for.
void embedcomp_do_without(const Front* front, int64_t shard) { routing.do_without(*front, shard); }

// Finish the sums of the call that this thread has routed; it can be scored then.
void embedcomp_settle(const Front* front) { routing.settle(*front); }

// Numbers of the answer to a message, or a negative Wrong.
int64_t embedcomp_asked(const Slotted* tables, int64_t count, const uint32_t* message,
                        int64_t words, int64_t version, int64_t* bad) {
  return asked_numbers(tables, count, message, words, version, bad);
}

// Find out what of a message that embedcomp_asked took is looked up by somebody else. Returns a Wrong.
int32_t embedcomp_number(const Slotted* tables, const uint32_t* message, int64_t words,
                         Numbered* out, int64_t* bad) {
  return numbering.number(tables, message, words, *out, bad);
}

// The answer to a message that embedcomp_asked took. given: float32 [bags, given_width], what was
// found of what embedcomp_number told, if it told anything. Returns a Wrong.
int32_t embedcomp_pool(const Slotted* tables, const uint32_t* message, int64_t words,
                       const float* given, int64_t given_width, float* out, int64_t* bad) {
  return pool(tables, message, words, given, given_width, out, bad);
}

// Stored rows [first, last) as floats [last - first, width], codes of columns as they are.
void embedcomp_rows(const Stored* table, int64_t first, int64_t last, float* out) {
  for (int64_t r = first; r < last; ++r) {
    float* row = out + (r - first) * table->width;
    std::fill(row, row + table->width, 0.0f);
    chosen().add_row(*table, table->rows + r * table->row_bytes, 1.0f, row);
  }
}

// Numbers of the nearest words to rows x [n, columns]; words: [columns][count], infinite where a
// whole vector has more room than there are words.
void embedcomp_nearest(const float* x, int64_t n, int64_t stride, int64_t columns,
                       const float* words, int64_t count, uint8_t* codes, int64_t codes_stride) {
  chosen().nearest(x, n, stride, columns, words, count, codes, codes_stride);
}

// Numbers of the atoms of length 1 that leave the least of rows x, times `most` [count] at most;
// atoms: [columns][count], zero where a whole vector has more room than there are atoms.
void embedcomp_likest(const float* x, int64_t n, int64_t stride, int64_t columns,
                      const float* atoms, int64_t count, const float* most, uint8_t* codes) {
  chosen().likest(x, n, stride, columns, atoms, count, most, codes);
}

// Codes of values [rows, width] of so many bits a column by the trellis, one after another from out
// on, where all bits are 0; the byte before is there already. matters: [width], times a column's
// squared error. words: [width][256], what 8 bits stand for that end with a column's.
//
// The Viterbi algorithm takes some rows at a time and looks beyond them: the best ways to all windows
// have long met by then, so the codes are as good as those of one pass.
void embedcomp_trellis(const float* values, int64_t rows, int64_t width, const int32_t* bits,
                       const float* matters, const float* words, uint8_t* out) {
  constexpr int64_t kSteps = 1024, kBeyond = 64;
  std::vector<int32_t> column;  // that have bits
  for (int64_t c = 0; c < width; ++c)
    if (bits[c] > 0) column.push_back(int32_t(c));
  const int64_t columns = int64_t(column.size());
  if (columns == 0 || rows == 0) return;
  const int64_t at_once = (kSteps + columns - 1) / columns, beyond = (kBeyond + columns - 1) / columns;
  const int64_t most = (at_once + beyond) * columns;
  std::vector<float> costs(256 * (most + 1)), given(most);
  std::vector<uint8_t> windows(most);
  uint8_t window = out[-1];
  int64_t at = 0;
  for (int64_t first = 0; first < rows; first += at_once) {
    const int64_t kept = std::min(at_once, rows - first);
    const int64_t seen = std::min(at_once + beyond, rows - first);
    for (int64_t r = 0; r < seen; ++r)
      for (int64_t i = 0; i < columns; ++i)
        given[r * columns + i] = values[(first + r) * width + column[i]];
    chosen().trellis(given.data(), seen * columns, column.data(), columns, bits, matters, words,
                     window, costs.data(), windows.data());
    for (int64_t s = 0; s < kept * columns; ++s) {
      const int32_t k = bits[column[s % columns]];
      const uint32_t code = uint32_t(windows[s] >> (8 - k)) << (at % 8);
      out[at / 8] |= uint8_t(code);
      if (at % 8 + k > 8) out[at / 8 + 1] |= uint8_t(code >> 8);
      at += k;
    }
    window = windows[kept * columns - 1];
  }
}

// Floats to bfloat16 pairs, as the engine packs weights: rows [n, width] to [n, (width + 1) / 2].
void embedcomp_to_brain(const float* x, int64_t n, int64_t width, uint32_t* out) {
  chosen().to_brain(x, width, n, width, out, (width + 1) / 2);
}

// So many vector products of a Format, for how fast they can be.
float embedcomp_multiply(int32_t format, int64_t n) {
  const float found = chosen().multiply[format](n);
  chosen().rest();
  return found;
}

// Use the kernels of another kind of CPU, 0 the best, for tests; returns how many there are.
int32_t embedcomp_kernels(int32_t which) {
  const int32_t count = int32_t(all_kernels().size());
  if (which >= 0 && which < count) used_kernels = which;
  return count;
}

// Bytes of each structure that Python fills in, for tests.
void embedcomp_sizes(int32_t* sizes) {
  const size_t all[] = {sizeof(Stored), sizeof(Piece), sizeof(Op),  sizeof(Buffer),
                        sizeof(Program), sizeof(Ids),  sizeof(Call), sizeof(Probe)};
  for (int i = 0; i < 8; ++i) sizes[i] = int32_t(all[i]);
}

}  // extern "C"
