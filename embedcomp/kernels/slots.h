// What Python fills in so that rows are looked up by other processes (slots.inc); routing.py has the
// same structures for ctypes.
//
// The ids of a table lie in kSlots slots: id i is id i / kSlots of slot i % kSlots. A message asks a
// shard for pooled rows, in 32-bit words without gaps:
//
//     kAsks, parts, version (2 words)
//     part: table, bags, ids, weighted (0 or 1); ids of each bag; ids; their weights, if weighted
//
// and its answer is, for each part and bag, float32 [width + 1]: the sum of the rows and the number
// of ids, or the sum of their weights.

#pragma once

#include <cstdint>

#include "engine.h"

constexpr int64_t kSlots = 256;
constexpr uint32_t kAsks = 0x31534345;  // "ECS1"
constexpr int64_t kHead = 4, kPartHead = 4;  // words

// What is wrong with a message, and what `bad` then holds.
enum Wrong : int32_t {
  kRight = 0,
  kMalformed = 1,      // it ends too early, or is none
  kOtherVersion = 2,   // the version that it asks for
  kNoSuchTable = 3,    // table
  kNoSuchId = 4,       // table, id
  kNotHere = 5,        // table, slot
};

// A table that is cut into slots, as a shard holds it; or one that is whole, in one slot.
struct Slotted {
  const Stored* const* slots;  // [number]; null: of another shard
  int64_t num_ids;
  int64_t width;   // numbers that an id reads
  int64_t number;  // of slots: kSlots or 1
  const int64_t* firsts;  // [number], of each slot's first row among those that are looked up by
                          // their numbers (Numbered); null: the engine looks them up
  int64_t given;          // numbers that are given of such a row, at least `width`
};

// What of a message is looked up by somebody else: rows by their numbers, in bags of parts, of which
// each has as many as the one with the most. It is there until its thread has another message.
struct Numbered {
  const int64_t* rows;
  const int64_t* offsets;  // [parts * bags + 1]
  const float* weights;    // as rows; null: there are none
  const int32_t* tables;   // [parts]
  int64_t parts, bags, count;
};

// A feature of a graph whose rows are looked up elsewhere, but for those of a table's first ids.
struct Outside {
  const Stored* near;  // rows that are here,
  int64_t near_ids;    // those of so many first ids
  int64_t unknown;     // id in `near` whose row stands for those that cannot be had; -1: nothing does
  int64_t num_ids;     // of the whole table
  int64_t padding;     // id that counts for nothing, or -1
  int32_t feature;      // of the graph
  int32_t table;        // number that shards know the table by
  int32_t width;        // numbers that an id reads
  int32_t count;        // ids of a bag in a matrix
  int32_t mean;         // of a bag's rows, not their sum
  int32_t reserved;
};

// What a program is given from outside; its inputs come after the model's own dense ones.
struct Front {
  const Outside* features;
  int64_t count;
  int64_t dense;    // inputs of the model itself
  int64_t shards;
  int64_t version;  // that shards are asked for
};

// A call on its way: what to ask each shard for, and the call that is scored when the answers are in.
// It is there until its thread routes another one.
struct Routed {
  const Call* call;
  const uint32_t* const* messages;  // [shards]
  const int64_t* words;             // [shards]; 0: nothing is asked of it
  const int64_t* ids;               // [shards], that it is asked for
};
