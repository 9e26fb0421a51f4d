// Look-ups of known ids in the engine's table, in the open addressing that it had before, and in
// std::unordered_map (known_ids.py).

#include "../embedcomp/kernels/known.h"

#include <ctime>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// What is looked up: int64 values, or strings by their offsets.
struct Asked {
  const uint8_t* values;
  const int32_t* offsets;

  int64_t number(int64_t i) const { return load<int64_t>(values + 8 * i); }
  Text text(int64_t i) const { return {values + offsets[i], offsets[i + 1] - offsets[i]}; }
};

// Half as many slots again as ids, each with an id, or half of a string's hash, and a row, of which
// 0 says that it is empty. Strings lie beside them with an offset of 4 bytes each.
class OpenAddressing {
 public:
  OpenAddressing(const Asked& known, int64_t ids)
      : texts_(known), width_(known.offsets ? 8 : 12), capacity_(ids + ids / 2 + 1) {
    slots_.resize(size_t(width_ * capacity_));
    for (int64_t i = 0; i < ids; ++i) {
      const uint64_t hashed = known.offsets ? hash(known.text(i)) : mixed(uint64_t(known.number(i)));
      int64_t at = slot_of(hashed);
      while (row_at(at) != 0) at = after(at);
      uint8_t* slot = slots_.data() + width_ * at;
      const int32_t row = int32_t(i + 1), half = int32_t(hashed);
      std::memcpy(slot + width_ - 4, &row, 4);
      std::memcpy(slot, known.offsets ? known.values : known.values + 8 * i, size_t(width_ - 4));
      if (known.offsets) std::memcpy(slot, &half, 4);
    }
  }

  int32_t find(int64_t id) const {
    for (int64_t at = slot_of(mixed(uint64_t(id)));; at = after(at)) {
      const int32_t row = row_at(at);
      if (row == 0 || load<int64_t>(slots_.data() + width_ * at) == id) return row;
    }
  }

  int32_t find(Text text) const {
    const uint64_t wanted = hash(text);
    for (int64_t at = slot_of(wanted);; at = after(at)) {
      const int32_t row = row_at(at);
      if (row == 0) return 0;
      if (load<uint32_t>(slots_.data() + width_ * at) == uint32_t(wanted) &&
          same(texts_.text(row - 1), text))
        return row;
    }
  }

 private:
  int64_t slot_of(uint64_t hash) const { return int64_t(Code(hash) * Code(capacity_) >> 64); }
  int64_t after(int64_t at) const { return at + 1 == capacity_ ? 0 : at + 1; }
  int32_t row_at(int64_t at) const {
    return load<int32_t>(slots_.data() + width_ * at + width_ - 4);
  }

  Asked texts_;
  int64_t width_, capacity_;
  std::vector<uint8_t> slots_;
};

// The C++ library's, with strings of its own.
class Standard {
 public:
  Standard(const Asked& known, int64_t ids) {
    for (int64_t i = 0; i < ids; ++i) {
      if (known.offsets)
        texts_.emplace(string_of(known.text(i)), int32_t(i + 1));
      else
        numbers_.emplace(known.number(i), int32_t(i + 1));
    }
  }

  int32_t find(int64_t id) const {
    const auto found = numbers_.find(id);
    return found == numbers_.end() ? 0 : found->second;
  }

  int32_t find(Text text) const {
    const auto found = texts_.find(string_of(text));
    return found == texts_.end() ? 0 : found->second;
  }

 private:
  static std::string string_of(Text text) {
    return {reinterpret_cast<const char*>(text.at), size_t(text.length)};
  }

  std::unordered_map<int64_t, int32_t> numbers_;
  std::unordered_map<std::string, int32_t> texts_;
};

template <class Table>
void find(const Table& table, const Asked& asked, int64_t first, int64_t count, int32_t* rows) {
  if (asked.offsets)
    for (int64_t i = 0; i < count; ++i) rows[i] = table.find(asked.text(first + i));
  else
    for (int64_t i = 0; i < count; ++i) rows[i] = table.find(asked.number(first + i));
}

void find(const Known& known, const Asked& asked, int64_t first, int64_t count, int32_t* rows) {
  if (asked.offsets)
    hashed_rows(known, count, [&](int64_t i) { return asked.text(first + i); }, rows);
  else
    number_rows(known, count, asked.values + 8 * first, rows);
}

// Seconds of looking up batches, one after another, each in the next of several equal tables. Before
// the next one begins, the rows of the last are read, as a model does.
template <class Table>
double seconds(const Table* const* tables, int64_t copies, const Asked& asked, int64_t count,
               int64_t batch, int32_t* rows) {
  const double began = now();
  for (int64_t first = 0, turn = 0; first + batch <= count; first += batch, ++turn) {
    find(*tables[turn % copies], asked, first, batch, rows + first);
    __asm__ volatile("lfence" ::: "memory");
  }
  return now() - began;
}

}  // namespace

extern "C" {

OpenAddressing* known_ids_open(const uint8_t* values, const int32_t* offsets, int64_t ids) {
  return new OpenAddressing({values, offsets}, ids);
}
void known_ids_open_end(OpenAddressing* table) { delete table; }

Standard* known_ids_standard(const uint8_t* values, const int32_t* offsets, int64_t ids) {
  return new Standard({values, offsets}, ids);
}
void known_ids_standard_end(Standard* table) { delete table; }

#define TIMED(name, Table)                                                                        \
  double name(const Table* const* tables, int64_t copies, const uint8_t* values,                  \
              const int32_t* offsets, int64_t count, int64_t batch, int32_t* rows) {              \
    return seconds(tables, copies, {values, offsets}, count, batch, rows);                        \
  }
TIMED(known_ids_seconds, Known)
TIMED(known_ids_open_seconds, OpenAddressing)
TIMED(known_ids_standard_seconds, Standard)

}  // extern "C"
