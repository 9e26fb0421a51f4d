// Makes tables of known ids (known.h) in arrays that log/known.py has made.

#include "known.h"

#include <vector>

namespace {

// Set the i-th of numbers of `bits` bits.
void put(uint8_t* numbers, int64_t i, int64_t bits, Code value) {
  uint8_t* at = numbers + i * bits / 8;
  const Code mask = ((Code{1} << bits) - 1) << (i * bits % 8);
  const Code kept = load<Code>(at) & ~mask;
  const Code fresh = kept | value << (i * bits % 8);
  std::memcpy(at, &fresh, sizeof fresh);
}

constexpr int64_t kFilled = 64;  // ids that are put into the table at a time

// Calls `act(places, searches, count)` for some of the known ids after another.
template <class Do>
void by_group(const Known& known, const int64_t* numbers, const Do& act) {
  Search searches[kFilled];
  for (int64_t first = 0; first < known.ids; first += kFilled) {
    const int64_t some = std::min(kFilled, known.ids - first);
    for (int64_t i = 0; i < some; ++i)
      searches[i] = search(known, known.kind == kStrings ? hash_of(known, text_of(known, first + i))
                                                         : hash_of(known, numbers[first + i]));
    act(first, searches, some);
  }
}

void sort_bucket(const Known& known, int64_t first, int64_t end, std::vector<Code>& codes) {
  codes.clear();
  for (int64_t at = first; at < end; ++at) codes.push_back(code_of(known, at));
  std::sort(codes.begin(), codes.end());
  for (int64_t at = first; at < end; ++at)
    put(known.codes, at, known.code_bits, codes[size_t(at - first)]);
}

}  // namespace

extern "C" {

// Where the codes of each bucket begin, and the end of the last: starts [buckets + 1].
void embedcomp_know_starts(const Known* known, const int64_t* numbers, uint32_t* starts) {
  std::fill_n(starts, known->buckets + 1, 0);
  by_group(*known, numbers, [&](int64_t, const Search* searches, int64_t some) {
    for (int64_t i = 0; i < some; ++i) __builtin_prefetch(starts + searches[i].bucket + 1, 1);
    for (int64_t i = 0; i < some; ++i) ++starts[searches[i].bucket + 1];
  });
  for (uint64_t bucket = 0; bucket < known->buckets; ++bucket) starts[bucket + 1] += starts[bucket];
}

// Put the codes of all ids into their buckets, whose starts become their ends.
void embedcomp_know(const Known* known, const int64_t* numbers, uint32_t* starts) {
  by_group(*known, numbers, [&](int64_t first, Search* searches, int64_t some) {
    for (int64_t i = 0; i < some; ++i) __builtin_prefetch(starts + searches[i].bucket, 1);
    for (int64_t i = 0; i < some; ++i) {
      searches[i].at = starts[searches[i].bucket]++;
      fetch_codes(*known, searches[i].at, searches[i].at + 1);
    }
    for (int64_t i = 0; i < some; ++i)
      put(known->codes, searches[i].at, known->code_bits, searches[i].wanted + uint64_t(first + i));
  });
  std::vector<Code> codes;
  for (uint64_t bucket = 0, first = 0; bucket < known->buckets; first = starts[bucket++])
    sort_bucket(*known, int64_t(first), starts[bucket], codes);
}

// Pack numbers of which none is less than the one before it, into blocks that hold zeros.
void embedcomp_pack_rising(const Rising* rising, const uint32_t* numbers, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t base = numbers[i - i % kRisingBlock];
    std::memcpy(block_of(*rising, i), &base, 4);
    put(block_of(*rising, i) + 4, i % kRisingBlock, rising->bits, numbers[i] - base);
  }
}

// Rows of int64 values, or of strings by their offsets.
void embedcomp_known(const Known* known, const uint8_t* values, const int32_t* offsets,
                     int64_t count, int32_t* rows) {
  if (offsets == nullptr) return number_rows(*known, count, values, rows);
  const auto text = [&](int64_t i) {
    return Text{values + offsets[i], offsets[i + 1] - offsets[i]};
  };
  hashed_rows(*known, count, text, rows);
}

}  // extern "C"
