// What Python fills in so that requests are read: the columns of a log by name (requests.cpp);
// native.py has the same structures for ctypes.

#pragma once

#include <cstdint>

#include "engine.h"
#include "known.h"

enum ColumnType : int32_t {
  kLongColumn = 0, kTextColumn = 1, kFloatColumn = 2, kDoubleColumn = 3, kIntColumn = 4,
};

enum Transform : int32_t { kAsItIs = 0, kLog1p = 1 };

// A feature of a model whose columns are raw.
struct Feature {
  Known known;        // of a categorical one
  int32_t is_dense;
  int32_t many;       // it is a list of ids
  int32_t is_user;    // the same for all candidates
  int32_t transform;  // of a dense one: (transform(x) - mean) / scale
  float mean;
  float scale;
};

// How requests become calls: features with one id a row, then lists, then dense ones.
struct Reader {
  const Feature* features;
  Known names;  // of all features: row 1 is the first one
  int64_t single;
  int64_t many;
  int64_t dense;
  const int32_t* layout[2];  // group and place of each of the graph's features: where each row has
  const int32_t* places[2];  // its own user, and where they share one
  int64_t* seen;             // ids that were read and those of them that are unknown, by feature
                             // of ids: [single + many][2], added to by all threads
  int32_t groups;            // inputs of ids that the graph has: 0 or 1
  int32_t reserved;
};

// A request, as an Arrow record batch or as a PredictRequest of the wire.
struct Request {
  const uint8_t* message;  // or null
  int64_t length;
  const uint8_t* model;    // that it may name, and the version: others are out of the ordinary
  int64_t model_length;
  int64_t version;
  const struct ArrowArray* items;  // a struct array,
  const int32_t* item_columns;     // by feature: the column, or -1,
  const int32_t* item_types;       // and its ColumnType
  const struct ArrowArray* user;   // likewise, of one row; or null
  const int32_t* user_columns;
  const int32_t* user_types;
  int64_t max_rows;
  int64_t max_ids;  // of one feature over all rows
};

// What a request's reader made of it; valid until the thread reads the next one.
struct Encoded {
  const Call* call;
  int64_t rows;
  int64_t total;           // ids
  const int64_t* ids;
  const int64_t* lengths;
  const float* dense;
  int32_t shares_user;     // the second group is of the one user
  int32_t reserved;
};
