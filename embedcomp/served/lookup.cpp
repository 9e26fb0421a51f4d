// Pooled lookups of many tables in one call: gather, dequantize, pool and decode, row by row.
//
// Plain C functions that are called through ctypes (native.py); they know nothing of Python or torch.

#include <cstdint>
#include <cstring>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define FOR_EVERY_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EVERY_CPU
#endif

namespace {

constexpr int kMostWidth = 4096;  // as in fused.py

enum Kind : int32_t { kFloat32 = 0, kFloat16 = 1, kColumns = 2, kRows = 3 };

float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  const uint32_t rest = h & 0x7fff;
  uint32_t bits;
  if (rest >= 0x7c00) {  // infinity and NaN
    bits = sign | 0x7f800000 | ((rest & 0x3ff) << 13);
  } else if (rest >= 0x400) {
    bits = sign | ((rest << 13) + 0x38000000);
  } else {  // subnormal: a whole number of 2^-24
    const float value = float(rest) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// A code of at most 8 bits, which reaches into the next byte at most.
inline float code_at(const uint8_t* row, int64_t row_bytes, int32_t byte, int32_t shift,
                     int32_t mask) {
  uint32_t word = row[byte];
  if (byte + 1 < row_bytes) word |= uint32_t(row[byte + 1]) << 8;
  return float((word >> shift) & uint32_t(mask));
}

}  // namespace

extern "C" {

// As Table in native.py.
struct Table {
  const uint8_t* rows;
  int64_t row_bytes;
  int64_t num_rows;
  const int32_t* byte;   // kColumns: where each column's code begins,
  const int32_t* shift;  // the bit in that byte,
  const int32_t* mask;   // and its largest value
  const float* scale;
  const float* offset;
  const float* decoder;  // [width, dim]
  const float* bias;     // [dim], or null
  int32_t kind;
  int32_t width;
  int32_t bits;  // kRows: of a code
  int32_t dim;
  int32_t mean;    // of a bag's rows, not their sum
  int32_t decodes;  // 0: the rows are what is asked for, and width is dim
  int32_t folded;   // codes are put out as they are
  int64_t codes_at;   // first column in codes
  int64_t values_at;  // first column in values
};

// Looks up a batch.
//
// ids, offsets: of all features one after another, offsets [features * batch + 1].
// codes, values: outputs, row-major; codes may be null. Returns the place of the first id that is
// out of its table's range, or -1.
FOR_EVERY_CPU
int64_t embedcomp_lookup(const Table* tables, int64_t features, int64_t batch, const int64_t* ids,
                         const int64_t* offsets, float* codes, int64_t codes_width, float* values,
                         int64_t values_width) {
  float sum[kMostWidth];
  for (int64_t f = 0; f < features; ++f) {
    const Table& t = tables[f];
    const int width = t.width, dim = t.dim;
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t first = offsets[f * batch + b], last = offsets[f * batch + b + 1];
      for (int c = 0; c < width; ++c) sum[c] = 0.0f;
      for (int64_t i = first; i < last; ++i) {
        const int64_t id = ids[i];
        if (id < 0 || id >= t.num_rows) return i;
        const uint8_t* row = t.rows + id * t.row_bytes;
        if (t.kind == kFloat32) {
          const float* x = reinterpret_cast<const float*>(row);
          for (int c = 0; c < width; ++c) sum[c] += x[c];
        } else if (t.kind == kFloat16) {
          const uint16_t* x = reinterpret_cast<const uint16_t*>(row);
          for (int c = 0; c < width; ++c) sum[c] += half_to_float(x[c]);
        } else if (t.kind == kColumns) {
          for (int c = 0; c < width; ++c) {
            const float code = code_at(row, t.row_bytes, t.byte[c], t.shift[c], t.mask[c]);
            sum[c] += code * t.scale[c] + t.offset[c];
          }
        } else {
          uint16_t ends[2];
          std::memcpy(ends, row + t.row_bytes - 4, 4);
          const float scale = half_to_float(ends[0]), offset = half_to_float(ends[1]);
          if (t.bits == 8) {
            for (int c = 0; c < width; ++c) sum[c] += float(row[c]) * scale + offset;
          } else {
            for (int c = 0; c < width; ++c) {
              const uint32_t code = (row[c / 2] >> (4 * (c % 2))) & 15u;
              sum[c] += float(code) * scale + offset;
            }
          }
        }
      }
      float constant = float(last - first);  // how often the bag has the decoder's bias
      if (t.mean && last > first) {
        for (int c = 0; c < width; ++c) sum[c] /= constant;
        constant = 1.0f;
      }
      float* value = values + b * values_width + t.values_at;
      if (!t.decodes) {
        for (int c = 0; c < width; ++c) value[c] = sum[c];
      } else {
        if (t.bias == nullptr) {
          for (int d = 0; d < dim; ++d) value[d] = 0.0f;
        } else {
          for (int d = 0; d < dim; ++d) value[d] = constant * t.bias[d];
        }
        for (int c = 0; c < width; ++c) {
          const float* decoder = t.decoder + int64_t(c) * dim;
          for (int d = 0; d < dim; ++d) value[d] += sum[c] * decoder[d];
        }
      }
      if (codes != nullptr) {
        float* code = codes + b * codes_width + t.codes_at;
        if (t.folded) {
          for (int c = 0; c < width; ++c) code[c] = sum[c];
        } else {
          for (int d = 0; d < dim; ++d) code[d] = value[d];
        }
      }
    }
  }
  return -1;
}

// Rows of codes by column to floats [n, width]; grids as in Table.
FOR_EVERY_CPU
void embedcomp_decode_columns(const uint8_t* rows, int64_t n, int64_t row_bytes, int64_t width,
                              const int32_t* byte, const int32_t* shift, const int32_t* mask,
                              const float* scale, const float* offset, float* out) {
  for (int64_t r = 0; r < n; ++r) {
    const uint8_t* row = rows + r * row_bytes;
    for (int64_t c = 0; c < width; ++c) {
      out[r * width + c] =
          code_at(row, row_bytes, byte[c], shift[c], mask[c]) * scale[c] + offset[c];
    }
  }
}

}  // extern "C"
