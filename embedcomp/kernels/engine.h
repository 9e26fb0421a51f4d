// What Python fills in and the engine reads; native.py has the same structures for ctypes.
//
// A program scores rows by a list of operations on buffers. A buffer holds `width` floats a row; an
// operation reads columns of buffers (pieces) and writes a whole buffer. Operations of the user
// stage read nothing of the items, so one user's rows need them once.

#pragma once

#include <cstdint>

// What is wrong with a call, and what `bad` then holds.
enum Problem : int32_t {
  kNone = 0,
  kBadId = 1,      // feature, id
  kBadBags = 2,    // group: its offsets do not fit its ids
  kNotFinite = 3,  // dense input, row
  kNoScore = 4,    // 0, row
  kUnread = 5,     // a request that Python has to read
  kTooLarge = 6,   // one of more rows than there is room for
};

// How a table's rows are stored.
enum RowKind : int32_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kRowInt8 = 2,      // fp16 scale and bias end a row
  kRowInt4 = 3,
  kColumnInt8 = 4,   // the codes as they are; scales are in the decoder
  kColumnInt4 = 5,
  kColumnMixed = 6,  // of `bits` each
  kRowInt2 = 7,
  kCsr8 = 8,      // rows say where elements begin and end, of a byte a column each
  kCsr16 = 9,     // the same with two bytes a column
  kBfloat16 = 10,
  kSymmetricInt8 = 11,  // an fp16 scale ends a row
  kCodebook = 12,       // codes that name floats, of a part of the columns each
  kAtoms = 13,          // numbers of atoms, then signed bytes to multiply them by
  kTiered = 14,         // a byte a row that is not read: its tier has it
  kResidual = 15,       // of a tier: codes that name words to be added to what it begins with
  kChunkedFloat16 = 16,  // blocks of bits say which chunks of a row there are
  kChunkedInt8 = 17,     // the same with signed bytes, whose scales are in the decoder
};

enum OpKind : int32_t {
  kLookUp = 0,  // rows of a table, pooled
  kInput = 1,   // columns of a dense input
  kLinear = 2,
  kDots = 3,
  kUnary = 4,
  kBinary = 5,
  kSum = 6,
};

// What is multiplied; sums are in float32, or exact for bytes.
enum Format : int32_t { kFloats = 0, kPairs = 1, kInt8 = 2 };

enum Unary : int32_t {
  kCopy = 0, kRelu, kSigmoid, kTanh, kGelu, kGeluTanh, kSilu, kNegative, kAbs, kExp, kLog, kSqrt,
  kRsqrt, kSquare, kReciprocal, kClamp, kLogit, kSoftplus, kLeakyRelu, kElu, kAffine,
};

enum Binary : int32_t { kAdd = 0, kSubtract, kMultiply, kDivide, kMaximum, kMinimum, kPower };

// Formulas of the stored row that an id reads (storage/probes.py).
enum ProbeKind : int32_t { kDigit = 0, kHash = 1, kPermuted = 2 };

// What becomes of the rows that an id reads by several.
enum Combine : int32_t { kConcat = 0, kSummed = 1, kMultiplied = 2 };

struct Probe {
  int64_t rows;     // that it reads one of,
  int64_t start;    // and the first of them
  int64_t divisor;  // kDigit
  int64_t first;    // kPermuted: number of id 0 in the pool,
  int64_t stride;   // and how far the next id's is
  int64_t salt;     // kHash, kPermuted
  uint64_t per_row;      // (2^64 - 1) / rows,
  uint64_t per_divisor;  // and the same of the divisor
  int32_t kind;
  int32_t reserved;
};

struct Stored {
  const uint8_t* rows;
  int64_t row_bytes;
  int64_t num_ids;
  const int32_t* byte;  // kColumnMixed, kCodebook: where each code begins,
  const int32_t* bit;   // the bit in that byte,
  const int32_t* mask;  // and its largest value
  int32_t kind;
  int32_t width;
  int64_t padding;  // id that counts for nothing, or -1
  int64_t last;     // stored row; without a map, ids beyond it read it too
  const void* map;  // stored row of each id, the blocks of a ranked index, or null
  int32_t map_bytes;  // of a stored row in it; 0: it is a ranked index
  int32_t row_bits;     // of a tier: from one row to the next; 0: whole row_bytes
  const void* columns;  // kCsr: column of each element; kChunked: blocks of bits,
  const void* values;   // and its fp16 value; kChunked: the chunks that there are
  const float* words;    // kCodebook: by part, code and column; kAtoms, kResidual: [words, width]
  const int32_t* first;  // kCodebook: first column of each part, and the width after the last,
  const int32_t* at;     // and where the words of each part begin; kResidual: where what the tier
                         // begins with is, and the words of each code
  int32_t parts;         // kCodebook, kResidual: codes of a row; kAtoms, kChunked: atoms, chunks
  int32_t narrow;        // kCodebook: each part is one column
  const Stored* tiers;   // kTiered: rows up to `last` each, the last one up to the end
  const int32_t* firsts;  // ranked index: first stored row of each tier,
  int32_t index_tiers;    // and how many there are
  int32_t probe_count;
  const Probe* probes;    // what an id reads, or null: one row
  int64_t own;            // ids below have rows of their own,
  int64_t own_start;      // from this one on
  int32_t combine;
  int32_t reserved;
  const float* grid;  // where rows are mixed: [2][width], scales and offsets of codes, or null
};

// Columns [at, at + width) of a buffer.
struct Piece {
  int32_t buffer;
  int32_t at;
  int32_t width;
};

struct Op {
  int32_t kind;
  int32_t which;     // Unary or Binary; kLookUp: the feature; kInput: the dense input
  int32_t out;       // buffer,
  int32_t out_at;    // and the first column in it
  int32_t x_pieces;
  int32_t y_pieces;
  int32_t times;     // kLinear: vectors a row; kDots: vectors of x; kSum: terms; kLookUp: ids of
                     // a bag in a matrix
  int32_t inputs;    // kLinear: of one vector; kDots: of one vector; kInput: first column
  int32_t outputs;   // columns that are put out (kLinear: of one vector); kDots: vectors of y
  int32_t format;    // kLinear, and kDots without bytes: a Format
  int32_t brain_in;  // kDots: x and y are pairs of bfloat16 already
  int32_t brain_out; // kLinear, and kUnary's kCopy: put pairs of bfloat16 out
  int32_t relu;      // kLinear: of what is put out
  int32_t init;      // kLinear: buffer that the sum begins with, or -1
  int32_t mean;      // kLookUp: of a bag's rows, not their sum
  int32_t counted;   // kLookUp: the last column is how often a bag has the decoder's bias
  int32_t runs;      // kDots: of what is put out
  Piece counts;      // kLinear: how often a row has the bias; no buffer: once
  float low;         // of kClamp, kLeakyRelu, kElu, kAffine
  float high;
  const Piece* x;
  const Piece* y;
  const void* weight;   // kLinear: packed
  const float* bias;    // kLinear: [outputs], or null
  const float* scales;  // kLinear of bytes: a weight's step by output,
  const int32_t* sums;  // and the sum of its bytes
  const int32_t* run;   // kDots: [runs][2], place (in rows of padded y) and number of what is
                        // put out
  const uint8_t* used;  // kDots: [tiles of x][panels of y], whether any product is put out
  const Stored* table;
};

// What a buffer holds: a number of floats a row, or a constant for all rows.
struct Buffer {
  int64_t at;  // first float: times rows in the arena of its stage
  int64_t width;
  int32_t stage;  // 0: a row's own, 1: the user's
  int32_t reserved;
  const float* constant;
};

struct Program {
  const Op* user_ops;
  const Op* item_ops;
  const Buffer* buffers;
  int64_t user_count;
  int64_t item_count;
  int64_t user_width;  // floats a row in the arena of each stage
  int64_t item_width;
  int64_t scratch;     // floats a row to bring pieces together
  int64_t dots;        // floats for the products of one row
  int64_t out;         // buffer of the logits
  int64_t block;       // rows at a time
};

// Ids of several features.
struct Ids {
  const int64_t* ids;
  const int64_t* offsets;  // [features * batch + 1]; null, with lengths: to be summed up from them;
  const int64_t* lengths;  // null, without: ids are a matrix, one place a column
  const float* weights;    // as ids, or null
  int64_t batch;
  int64_t stride;    // of a matrix's rows
  int64_t features;  // of a jagged input
  int64_t total;     // ids
};

struct Call {
  const Ids* groups;
  const int32_t* group;  // of each feature
  const int32_t* place;  // of each feature in its group
  const float* const* dense;
  const int64_t* stride;  // of each dense input's rows
  int64_t count;          // of groups
};

extern "C" {
int32_t embedcomp_user(const Program* p, const Call* given, float* user, int64_t* bad);
int32_t embedcomp_score(const Program* p, const Call* given, const float* user, int64_t first,
                        int64_t last, int32_t probabilities, float* scores, int64_t* bad);
}
