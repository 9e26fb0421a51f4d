// Known ids and their rows, read where log/known.py has put them. Nothing is read beyond the arrays,
// whatever is written in them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

enum KnownKind : int32_t { kNumbers = 0, kStrings = 1, kRowNumbers = 2 };

// Whole numbers of which none is less than the one before it (log/known.py), in blocks of 32: their
// first one in 4 bytes, and how much more each is, in `bits` bits.
struct Rising {
  uint8_t* blocks;  // 16 bytes more than they take
  int64_t bits;     // 32 at most
};

// The known ids of a column and their rows. A hash has 64 - shift bits, which lie uppermost.
struct Known {
  uint8_t* codes;        // [ids] of code_bits each, and 16 bytes: remainder * ids + place
  Rising starts;         // of each bucket among the codes, and the end of the last
  const uint8_t* text;   // kStrings: all of them, one after another, by place,
  Rising texts;          // where each begins, and the end of the last
  int64_t text_bytes;
  int64_t first_row;     // of the first known id, whose place is 0
  int64_t ids;           // that are known
  uint64_t smallest;     // kNumbers: of the ids,
  uint64_t span;         // and how much more the largest is
  uint64_t buckets;
  uint64_t remainders;   // that ids of a bucket may have
  int32_t shift;
  int32_t code_bits;
  int32_t kind;
  int32_t unknown_row;
  int32_t null_row;
  int32_t reserved;
};

namespace {

template <class T>
inline T load(const void* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct Text {
  const uint8_t* at;
  int64_t length;
};

inline bool same(Text one, Text other) {
  return one.length == other.length &&
         (one.length == 0 || std::memcmp(one.at, other.at, size_t(one.length)) == 0);
}

// ---- packed numbers ---------------------------------------------------------------------------

using Code = unsigned __int128;
constexpr int64_t kRisingBlock = 32;

// The i-th of numbers of `bits` bits.
inline Code packed(const uint8_t* numbers, int64_t i, int64_t bits) {
  return load<Code>(numbers + i * bits / 8) >> (i * bits % 8) & ((Code{1} << bits) - 1);
}

inline uint8_t* block_of(const Rising& rising, int64_t i) {
  return rising.blocks + i / kRisingBlock * (4 + kRisingBlock / 8 * rising.bits);
}

inline int64_t number(const Rising& rising, int64_t i) {
  const uint8_t* block = block_of(rising, i);
  const int64_t bit = i % kRisingBlock * rising.bits;
  const uint64_t more = load<uint64_t>(block + 4 + bit / 8) >> (bit % 8);
  return int64_t(load<uint32_t>(block) + (more & ((uint64_t{1} << rising.bits) - 1)));
}

inline void fetch(const Rising& rising, int64_t i) {
  const uint8_t* block = block_of(rising, i);
  __builtin_prefetch(block);
  __builtin_prefetch(block + 4 + (i % kRisingBlock + 1) * rising.bits / 8);
}

inline Code code_of(const Known& known, int64_t i) {
  return packed(known.codes, i, known.code_bits);
}

inline void fetch_codes(const Known& known, int64_t first, int64_t end) {
  __builtin_prefetch(known.codes + first * known.code_bits / 8);
  __builtin_prefetch(known.codes + end * known.code_bits / 8);
}

// ---- hashes -----------------------------------------------------------------------------------

inline uint64_t mixed(uint64_t x) {
  x *= 0x9E3779B97F4A7C15ull;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93ull;
  return x ^ (x >> 32);
}

inline uint64_t hash(Text text) {
  uint64_t found = mixed(uint64_t(text.length) + 1);
  int64_t i = 0;
  for (; i + 8 <= text.length; i += 8) found = mixed(found ^ load<uint64_t>(text.at + i));
  uint64_t rest = 0;
  if (i < text.length) std::memcpy(&rest, text.at + i, size_t(text.length - i));
  return mixed(found ^ rest);
}

inline uint64_t hash_of(const Known& known, Text text) {
  return hash(text) & (~uint64_t{0} << known.shift);
}

// No two ids have the same: odd factors and shifts of the uppermost bits can be undone.
inline uint64_t hash_of(const Known& known, int64_t id) {
  const uint64_t bits = ~uint64_t{0} << known.shift;
  const int half = (65 - known.shift) / 2;
  uint64_t x = (uint64_t(id) - known.smallest) << known.shift;
  x *= 0x9E3779B97F4A7C15ull;
  x ^= (x >> half) & bits;
  x *= 0xD6E8FEB86659FD93ull;
  x ^= (x >> half) & bits;
  return x * 0xBF58476D1CE4E5B9ull;
}

inline bool may_be(const Known& known, int64_t id) {
  return uint64_t(id) - known.smallest <= known.span;
}
inline bool may_be(const Known&, Text) { return true; }

// ---- look-ups ---------------------------------------------------------------------------------

// The bucket of a hash is the whole part of hash * buckets / 2^64, and what it leaves tells ids of a
// bucket apart.
struct Search {
  int64_t bucket;
  Code wanted;      // the smallest code with the remainder
  int64_t at, end;  // codes that were not looked at yet
};

inline Search search(const Known& known, uint64_t hash) {
  const Code product = Code(hash) * known.buckets;
  const uint64_t remainder = uint64_t(Code(uint64_t(product)) * known.remainders >> 64);
  return {int64_t(product >> 64), Code(remainder) * uint64_t(known.ids), 0, 0};
}

inline void open(const Known& known, Search& s) {
  s.at = number(known.starts, s.bucket);
  s.end = std::min(number(known.starts, s.bucket + 1), known.ids);
}

// Place of the next id with the hash; -1: there is none. Codes of a bucket rise.
inline int64_t next(const Known& known, Search& s) {
  while (s.at < s.end) {
    const Code code = code_of(known, s.at++);
    if (code >= s.wanted) return code - s.wanted < Code(known.ids) ? int64_t(code - s.wanted) : -1;
  }
  return -1;
}

inline Text text_of(const Known& known, int64_t place) {
  const int64_t end = std::min(number(known.texts, place + 1), known.text_bytes);
  const int64_t from = std::min(number(known.texts, place), end);
  return {known.text + from, end - from};
}

inline int32_t row_of(const Known& known, Search&, int64_t, int64_t place) {
  return place < 0 ? known.unknown_row : int32_t(known.first_row + place);
}

inline int32_t row_of(const Known& known, Search& s, Text text, int64_t place) {
  for (; place >= 0; place = next(known, s))
    if (same(text_of(known, place), text)) return int32_t(known.first_row + place);
  return known.unknown_row;
}

constexpr int64_t kTogether = 32;  // ids that are looked up at a time

// Rows of `some` ids, `id(i)` being an int64_t or a Text. What a step reads of all of them was
// fetched during the step before, so that they wait for memory together.
template <class Id, class T>
void rows_together(const Known& known, int64_t some, const Id& id, T* rows) {
  Search searches[kTogether];
  int64_t places[kTogether];
  for (int64_t i = 0; i < some; ++i) {
    searches[i] = search(known, hash_of(known, id(i)));
    fetch(known.starts, searches[i].bucket);
  }
  for (int64_t i = 0; i < some; ++i) {
    open(known, searches[i]);
    fetch_codes(known, searches[i].at, searches[i].end);
  }
  for (int64_t i = 0; i < some; ++i) {
    places[i] = may_be(known, id(i)) ? next(known, searches[i]) : -1;
    if (known.kind == kStrings && places[i] >= 0) fetch(known.texts, places[i]);
  }
  if (known.kind == kStrings)
    for (int64_t i = 0; i < some; ++i)
      if (places[i] >= 0) __builtin_prefetch(text_of(known, places[i]).at);
  for (int64_t i = 0; i < some; ++i) rows[i] = T(row_of(known, searches[i], id(i), places[i]));
}

// Rows of any number of ids, which are of the known ones' type.
template <class Id, class T>
void hashed_rows(const Known& known, int64_t count, const Id& id, T* rows) {
  for (int64_t first = 0; first < count; first += kTogether)
    rows_together(known, std::min(kTogether, count - first),
                  [&](int64_t i) { return id(first + i); }, rows + first);
}

// Rows of int64 values, wherever they lie.
template <class T>
void number_rows(const Known& known, int64_t count, const uint8_t* values, T* rows) {
  const auto id = [&](int64_t i) { return load<int64_t>(values + 8 * i); };
  if (known.kind != kRowNumbers) return hashed_rows(known, count, id, rows);
  for (int64_t i = 0; i < count; ++i)
    rows[i] = T(id(i) >= 0 && id(i) < known.ids ? id(i) : known.unknown_row);
}

inline int32_t row_of(const Known& known, Text text) {
  int32_t row;
  hashed_rows(known, 1, [&](int64_t) { return text; }, &row);
  return row;
}

}  // namespace
