// From the columns of a request, read where it holds them, to what a program reads: ids become rows
// of tables, dense numbers are transformed and scaled. Then the program scores them, in one call.
//
// What is out of the ordinary in a request is left to Python, which does the same more slowly and
// says what is wrong: every function here answers kUnread then.

#include "requests.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

// The Arrow C data interface: https://arrow.apache.org/docs/format/CDataInterface.html
struct ArrowArray {
  int64_t length;
  int64_t null_count;
  int64_t offset;
  int64_t n_buffers;
  int64_t n_children;
  const void** buffers;
  struct ArrowArray** children;
  struct ArrowArray* dictionary;
  void (*release)(struct ArrowArray*);
  void* private_data;
};

namespace {

// ---- columns ----------------------------------------------------------------------------------

// Where something is null: by a bitmap of Arrow, or by a list of places.
struct Nulls {
  const uint8_t* bitmap = nullptr;  // a bit is set where there is a value,
  int64_t first = 0;                // the first one's place in it
  Text places{nullptr, 0};          // int32 each

  bool any() const { return bitmap != nullptr || places.length > 0; }

  template <class Do>
  void each(int64_t begin, int64_t end, const Do& act) const {
    if (bitmap != nullptr)
      for (int64_t i = begin; i < end; ++i) {
        const int64_t bit = first + i;
        if (!(bitmap[bit / 8] >> (bit % 8) & 1)) act(i);
      }
    for (int64_t i = 0; i < places.length; i += 4) act(load<int32_t>(places.at + i));
  }

  bool fit(int64_t length) const {
    if (places.length % 4) return false;
    for (int64_t i = 0; i < places.length; i += 4) {
      const int32_t place = load<int32_t>(places.at + i);
      if (place < 0 || place >= length) return false;
    }
    return true;
  }
};

struct Column {
  int32_t type = -1;  // ColumnType
  int64_t rows = 0;
  int64_t values = 0;
  const uint8_t* data = nullptr;      // numbers, or what strings are made of
  const int32_t* offsets = nullptr;   // kTextColumn: [values + 1], or null: they are
  const Text* texts = nullptr;        // apart
  bool list = false;
  const int32_t* ends = nullptr;      // of an Arrow list: [rows + 1], the first in `values` being
                                      // ends[0]; else
  const uint8_t* lengths = nullptr;   // int32 each
  Nulls null_rows, null_values;

  Text text(int64_t i) const {
    return texts != nullptr ? texts[i] : Text{data + offsets[i], offsets[i + 1] - offsets[i]};
  }
  int64_t length(int64_t row) const {
    return ends != nullptr ? ends[row + 1] - ends[row] : load<int32_t>(lengths + 4 * row);
  }
};

// Rows of the values of a column that is of the vocabulary's type, nulls included.
template <class T>
void rows_of(const Known& known, const Column& column, int64_t first, int64_t last,
             const Nulls& nulls, T* rows) {
  if (column.type == kTextColumn)
    hashed_rows(known, last - first, [&](int64_t i) { return column.text(first + i); }, rows);
  else
    number_rows(known, last - first, column.data + 8 * first, rows);
  if (nulls.any())
    nulls.each(first, last, [&](int64_t i) { rows[i - first] = known.null_row; });
}

bool is_of(const Known& known, const Column& column) {
  return column.type == (known.kind == kStrings ? kTextColumn : kLongColumn);
}

// Numbers, `stride` floats apart, as a model sees them; false where one is infinite.
bool standardise(const Feature& feature, int64_t count, float* numbers, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    float& x = numbers[i * stride];
    if (std::isinf(x)) return false;
    if (feature.transform == kLog1p) x = std::copysign(std::log1p(std::fabs(x)), x);
    x = (x - feature.mean) / feature.scale;
    if (std::isnan(x)) x = 0.0f;
  }
  return true;
}

// A column's numbers as a model sees them, `stride` floats apart; false where one is infinite.
bool standards_of(const Feature& feature, const Column& column, float* out, int64_t stride) {
  const bool nulls = column.null_rows.any();
  for (int64_t i = 0; i < column.rows; ++i) {
    float& x = out[i * stride];
    switch (column.type) {
      case kFloatColumn:
        x = load<float>(column.data + 4 * i);
        break;
      case kDoubleColumn:
        x = float(load<double>(column.data + 8 * i));
        break;
      case kIntColumn:
        x = float(load<int32_t>(column.data + 4 * i));
        break;
      default: {
        const int64_t whole = load<int64_t>(column.data + 8 * i);
        x = nulls ? float(double(whole)) : float(whole);  // as NumPy does where some are null
      }
    }
  }
  column.null_rows.each(0, column.rows, [&](int64_t i) { out[i * stride] = NAN; });
  return standardise(feature, column.rows, out, stride);
}

// ---- Arrow ------------------------------------------------------------------------------------

const uint8_t* bytes_of(const ArrowArray& array, int64_t buffer) {
  return static_cast<const uint8_t*>(array.buffers[buffer]);
}

Nulls nulls_of(const ArrowArray& array, int64_t first) {
  if (array.null_count == 0 || bytes_of(array, 0) == nullptr) return {};
  return {bytes_of(array, 0), first, {nullptr, 0}};
}

// Values of a type that may lie `skipped` rows further than the array says.
void point(const ArrowArray& array, int32_t type, int64_t skipped, Column& column) {
  const int64_t first = array.offset + skipped;
  column.type = type;
  if (type == kTextColumn) {
    column.offsets = static_cast<const int32_t*>(array.buffers[1]) + first;
    column.data = bytes_of(array, 2);
  } else {
    column.data = bytes_of(array, 1) + first * (type == kFloatColumn || type == kIntColumn ? 4 : 8);
  }
}

void from_arrow(const ArrowArray& batch, int32_t place, int32_t type, bool list, Column& column) {
  const ArrowArray& array = *batch.children[place];
  const int64_t first = array.offset + batch.offset;
  column.rows = column.values = batch.length;
  column.null_rows = nulls_of(array, first);
  column.list = list;
  if (!list) {
    point(array, type, batch.offset, column);
    return;
  }
  const ArrowArray& inside = *array.children[0];
  column.ends = static_cast<const int32_t*>(array.buffers[1]) + first;
  column.values = inside.length;
  column.null_values = nulls_of(inside, inside.offset);
  point(inside, type, 0, column);
}

// ---- the wire ---------------------------------------------------------------------------------

// A message of protocol buffers: its fields one after another.
class Fields {
 public:
  explicit Fields(Text text) : at_(text.at), end_(text.at + text.length) {}

  // Go to the next field; false at the end, or where there is none, which `whole` tells apart.
  bool next() {
    if (at_ == end_) return false;
    uint64_t key = 0;
    if (!varint(key, kShort) || key >> 3 == 0 || key >> 32 != 0) return broken();
    number = int32_t(key >> 3);
    is_text = (key & 7) == 2;
    if (!is_text) return (key & 7) == 0 ? varint(value, kLong) || broken() : broken();
    uint64_t length = 0;
    if (!varint(length, kShort) || length > uint64_t(end_ - at_)) return broken();
    text = {at_, int64_t(length)};
    at_ += length;
    return true;
  }

  bool whole() const { return whole_; }

  int32_t number = 0;
  bool is_text = false;
  Text text{nullptr, 0};
  uint64_t value = 0;

 private:
  static constexpr int kShort = 5, kLong = 10;  // bytes at most, as protobuf's own reader has it

  bool varint(uint64_t& found, int most) {
    found = 0;
    for (int shift = 0; shift < 7 * most; shift += 7) {
      if (at_ == end_) return false;
      const uint8_t byte = *at_++;
      if (shift == 63 && byte > 1) return false;
      found |= uint64_t(byte & 127) << shift;
      if (byte < 128) return true;
    }
    return false;
  }

  bool broken() { return whole_ = false; }

  const uint8_t *at_, *end_;
  bool whole_ = true;
};

// Whether bytes are UTF-8, as strings of the wire have to be (RFC 3629).
bool is_utf8(Text text) {
  const uint8_t *at = text.at, *end = at + text.length;
  while (at < end) {
    while (end - at >= 8 && (load<uint64_t>(at) & 0x8080808080808080ull) == 0) at += 8;
    if (at == end) break;
    const uint8_t head = *at++;
    if (head < 0x80) continue;
    const int more = head < 0xc2 ? 0 : head < 0xe0 ? 1 : head < 0xf0 ? 2 : head < 0xf5 ? 3 : 0;
    if (more == 0 || end - at < more) return false;
    const uint8_t low = head == 0xe0 ? 0xa0 : head == 0xf0 ? 0x90 : 0x80;
    const uint8_t high = head == 0xed ? 0x9f : head == 0xf4 ? 0x8f : 0xbf;
    if (at[0] < low || at[0] > high) return false;
    for (int i = 1; i < more; ++i)
      if (at[i] >> 6 != 2) return false;
    at += more;
  }
  return true;
}

bool read_texts(Text message, std::vector<Text>& texts) {
  Fields fields(message);
  while (fields.next()) {
    if (fields.number != 1 || !fields.is_text || !is_utf8(fields.text)) return false;
    texts.push_back(fields.text);
  }
  return fields.whole();
}

// A message Column; its strings are put at the end of `texts`, which may move: `texts_from` says
// where they begin.
bool from_wire(Text message, std::vector<Text>& texts, Column& column, int64_t& texts_from) {
  Fields fields(message);
  uint32_t seen = 0;
  Text values{nullptr, 0}, lengths{nullptr, 0};
  int32_t kind = 0;
  while (fields.next()) {
    if (!fields.is_text || fields.number > 6 || (seen >> fields.number & 1)) return false;
    seen |= 1u << fields.number;
    switch (fields.number) {
      case 4:
        lengths = fields.text;
        break;
      case 5:
        column.null_rows.places = fields.text;
        break;
      case 6:
        column.null_values.places = fields.text;
        break;
      default:
        if (kind != 0) return false;
        kind = fields.number;
        values = fields.text;
    }
  }
  if (!fields.whole() || kind == 0) return false;
  if (kind == 2) {
    texts_from = int64_t(texts.size());
    if (!read_texts(values, texts)) return false;
    column.type = kTextColumn;
    column.values = int64_t(texts.size()) - texts_from;
  } else {
    const int64_t width = kind == 1 ? 8 : 4;
    if (values.length % width) return false;
    column.type = kind == 1 ? kLongColumn : kFloatColumn;
    column.values = values.length / width;
    column.data = values.at;
  }
  column.list = seen >> 4 & 1;
  if (!column.list) {
    column.rows = column.values;
    return column.null_values.places.length == 0 && column.null_rows.fit(column.rows);
  }
  if (lengths.length % 4) return false;
  column.rows = lengths.length / 4;
  column.lengths = lengths.at;
  int64_t left = column.values;
  for (int64_t row = 0; row < column.rows; ++row) {
    const int32_t length = load<int32_t>(lengths.at + 4 * row);
    if (length < 0 || length > left) return false;
    left -= length;
  }
  if (left != 0 || !column.null_rows.fit(column.rows)) return false;
  bool empty = true;
  column.null_rows.each(0, column.rows, [&](int64_t row) { empty &= column.length(row) == 0; });
  return empty && column.null_values.fit(column.values);
}

// ---- requests ---------------------------------------------------------------------------------

constexpr size_t kKept = 1 << 20;  // bytes of a vector

template <class T>
void forget_large(std::vector<T>& held) {
  if (held.capacity() * sizeof(T) > kKept) std::vector<T>().swap(held);
}

// What a thread keeps of one request until the next.
class Reading {
 public:
  std::vector<float> user;  // what is computed once of the user

  // Encode a request; false where Python has to.
  bool read(const Reader& reader, const Request& request, Encoded& out) {
    forget();
    if (encode(reader, request, out)) return true;
    forget();
    return false;
  }

  // Give back the memory that only few requests need, or every thread would have it in the end.
  void forget() {
    forget_large(texts_);
    forget_large(found_);
    forget_large(null_rows_);
    forget_large(ids_);
    forget_large(lengths_);
    forget_large(dense_);
  }

 private:
  bool encode(const Reader& reader, const Request& request, Encoded& out) {
    count_ = reader.single + reader.many + reader.dense;
    given_.assign(size_t(2 * count_), Column());
    has_.assign(size_t(2 * count_), 0);
    if (request.message == nullptr)
      columns_of_arrays(reader, request);
    else if (!columns_of_message(reader, request))
      return false;
    if (!sized(reader, request)) return false;
    shares_ = shares_user(reader);
    ids_.clear();
    lengths_.clear();
    seen_.assign(size_t(2 * (reader.single + reader.many)), 0);
    for (int side = 0; side < (shares_ ? 2 : 1); ++side) {
      first_id_[side] = int64_t(ids_.size());
      first_length_[side] = int64_t(lengths_.size());
      const int64_t rows = side ? 1 : rows_;
      for (int64_t f = 0; f < reader.single + reader.many; ++f)
        if (!shares_ || (reader.features[f].is_user != 0) == (side == 1))
          if (!ids_of(reader.features[f], f, rows, request.max_ids)) return false;
    }
    dense_.resize(size_t(rows_ * reader.dense));
    for (int64_t i = 0; i < reader.dense; ++i)
      if (!dense_of(reader.features[reader.single + reader.many + i],
                    reader.single + reader.many + i, reader.dense, dense_.data() + i))
        return false;
    make_call(reader, out);
    for (size_t i = 0; i < seen_.size(); ++i)
      if (seen_[i]) __atomic_fetch_add(reader.seen + i, seen_[i], __ATOMIC_RELAXED);
    return true;
  }

  bool columns_of_message(const Reader& reader, const Request& request) {
    texts_.clear();
    texts_from_.assign(size_t(2 * count_), -1);
    Fields fields({request.message, request.length});
    while (fields.next()) {
      if (fields.number < 3) {
        if (fields.is_text != (fields.number == 1)) return false;
        const Text model = {request.model, request.model_length};
        if (fields.is_text ? fields.text.length != 0 && !same(fields.text, model)
                           : fields.value != 0 && fields.value != uint64_t(request.version))
          return false;
        continue;
      }
      if (fields.number > 4 || !fields.is_text) return false;
      if (!entry(reader, fields.text, fields.number == 3)) return false;
    }
    if (!fields.whole()) return false;
    for (size_t i = 0; i < texts_from_.size(); ++i)
      if (texts_from_[i] >= 0) given_[i].texts = texts_.data() + texts_from_[i];
    return true;
  }

  // An entry of a map from names to columns.
  bool entry(const Reader& reader, Text message, bool of_user) {
    Fields fields(message);
    Text name{nullptr, 0}, column{nullptr, 0};
    uint32_t seen = 0;
    while (fields.next()) {
      if (!fields.is_text || fields.number > 2 || (seen >> fields.number & 1)) return false;
      seen |= 1u << fields.number;
      (fields.number == 1 ? name : column) = fields.text;
    }
    if (!fields.whole() || seen != 6 || !is_utf8(name)) return false;
    const int32_t found = row_of(reader.names, name);
    if (found == reader.names.unknown_row) {  // no feature; it has to be a column all the same
      Column unused;
      int64_t from = -1;
      const size_t before = texts_.size();
      const bool whole = from_wire(column, texts_, unused, from);
      texts_.resize(before);
      return whole;
    }
    const int64_t at = found - reader.names.first_row + (of_user ? count_ : 0);
    if (has_[size_t(at)]) return false;
    has_[size_t(at)] = 1;
    return from_wire(column, texts_, given_[size_t(at)], texts_from_[size_t(at)]);
  }

  void columns_of_arrays(const Reader& reader, const Request& request) {
    for (int side = 0; side < (request.user != nullptr ? 2 : 1); ++side) {
      const ArrowArray& batch = side ? *request.user : *request.items;
      const int32_t* columns = side ? request.user_columns : request.item_columns;
      const int32_t* types = side ? request.user_types : request.item_types;
      for (int64_t f = 0; f < count_; ++f) {
        if (columns[f] < 0) continue;
        const size_t at = size_t(f + (side ? count_ : 0));
        has_[at] = 1;
        from_arrow(batch, columns[f], types[f], reader.features[f].many != 0, given_[at]);
      }
    }
  }

  // Whether every feature is there, once, of the right type and in as many rows as the others.
  bool sized(const Reader& reader, const Request& request) {
    rows_ = -1;
    for (int64_t f = 0; f < count_; ++f) {
      const bool user = has_[size_t(count_ + f)];
      if (has_[size_t(f)] == user) return false;
      const Column& column = given_[size_t(user ? count_ + f : f)];
      const Feature& feature = reader.features[f];
      if (feature.is_dense ? column.type == kTextColumn || column.list
                           : !is_of(feature.known, column) || column.list != (feature.many != 0))
        return false;
      if (user && column.rows != 1) return false;
      if (user) continue;
      if (rows_ < 0) rows_ = column.rows;
      if (column.rows != rows_) return false;
    }
    return rows_ > 0 && rows_ <= request.max_rows;
  }

  // Whether the user's features, and no others, are given once for all candidates.
  bool shares_user(const Reader& reader) const {
    bool any = false;
    for (int64_t f = 0; f < count_; ++f) {
      if (has_[size_t(count_ + f)] != (reader.features[f].is_user != 0)) return false;
      any |= reader.features[f].is_user != 0;
    }
    return any;
  }

  const Column& column_of(int64_t feature, bool& of_user) const {
    of_user = has_[size_t(count_ + feature)];
    return given_[size_t(of_user ? count_ + feature : feature)];
  }

  // Ids of a feature over `rows` rows, put at the end.
  bool ids_of(const Feature& feature, int64_t f, int64_t rows, int64_t max_ids) {
    bool of_user;
    const Column& column = column_of(f, of_user);
    const int64_t times = of_user ? rows : 1, at = int64_t(ids_.size());
    if (!column.list) {
      ids_.resize(size_t(at + rows));
      lengths_.resize(lengths_.size() + size_t(rows), 1);
      rows_of(feature.known, column, 0, column.rows, column.null_rows, ids_.data() + at);
      count(feature, f, ids_.data() + at, column.rows);
      if (times > 1) std::fill(ids_.begin() + at, ids_.end(), ids_[size_t(at)]);
      return true;
    }
    return list_of(feature, f, column, times, of_user ? max_ids / rows_ : max_ids);
  }

  // Note how many ids there are, and how many of them are unknown.
  template <class T>
  void count(const Feature& feature, int64_t f, const T* rows, int64_t ids) {
    seen_[size_t(2 * f)] += ids;
    seen_[size_t(2 * f + 1)] += std::count(rows, rows + ids, T(feature.known.unknown_row));
  }

  // A list, `times` times, of `most` ids in all its rows at most.
  bool list_of(const Feature& feature, int64_t f, const Column& column, int64_t times,
               int64_t most) {
    const Known& known = feature.known;
    const size_t at = ids_.size(), at_length = lengths_.size();
    const int64_t first = column.ends != nullptr ? column.ends[0] : 0;
    const int64_t last = column.ends != nullptr ? column.ends[column.rows] : column.values;
    if (last - first > most) return false;
    found_.resize(size_t(last - first));
    rows_of(known, column, first, last, column.null_values, found_.data());
    count(feature, f, found_.data(), last - first);
    null_rows_.assign(size_t(column.rows), 0);
    column.null_rows.each(0, column.rows, [&](int64_t row) { null_rows_[size_t(row)] = 1; });
    int64_t from = 0;
    for (int64_t row = 0; row < column.rows; ++row) {
      const int64_t length = column.length(row);
      if (null_rows_[size_t(row)]) {  // a null list is a bag of the null row
        ids_.push_back(known.null_row);
        lengths_.push_back(1);
      } else {
        ids_.insert(ids_.end(), found_.begin() + from, found_.begin() + from + length);
        lengths_.push_back(length);
      }
      from += length;
    }
    const size_t length = ids_.size() - at;
    ids_.resize(at + length * size_t(times));
    lengths_.resize(at_length + size_t(column.rows * times), lengths_.back());
    for (int64_t i = 1; i < times; ++i)
      std::copy_n(ids_.begin() + at, length, ids_.begin() + at + size_t(i) * length);
    return true;
  }

  bool dense_of(const Feature& feature, int64_t f, int64_t stride, float* out) const {
    bool of_user;
    const Column& column = column_of(f, of_user);
    if (!standards_of(feature, column, out, stride)) return false;
    if (of_user)
      for (int64_t row = 1; row < rows_; ++row) out[row * stride] = out[0];
    return true;
  }

  void make_call(const Reader& reader, Encoded& out) {
    const int sides = shares_ ? 2 : 1;
    for (int side = 0; side < sides; ++side) {
      const bool last = side == sides - 1;
      const int64_t ids_end = last ? int64_t(ids_.size()) : first_id_[1];
      const int64_t lengths_end = last ? int64_t(lengths_.size()) : first_length_[1];
      Ids& group = groups_[side];
      group = Ids{};
      group.ids = ids_.data() + first_id_[side];
      group.lengths = lengths_.data() + first_length_[side];
      group.batch = side ? 1 : rows_;
      group.features = (lengths_end - first_length_[side]) / group.batch;
      group.total = ids_end - first_id_[side];
      dense_at_[side] = dense_.data();
      stride_[side] = reader.dense;
    }
    dense_at_[1] = dense_.data();
    stride_[1] = reader.dense;
    call_ = {groups_, reader.layout[shares_], reader.places[shares_], dense_at_, stride_,
             reader.groups ? sides : 0};
    out = {&call_, rows_, int64_t(ids_.size()), ids_.data(), lengths_.data(), dense_.data(),
           shares_, 0};
  }

  int64_t count_ = 0, rows_ = 0;
  bool shares_ = false;
  std::vector<Column> given_;  // by feature, of the items and then of the user,
  std::vector<uint8_t> has_;   // and whether it is there
  std::vector<Text> texts_;
  std::vector<int64_t> texts_from_;  // by place in given_
  std::vector<int32_t> found_;
  std::vector<uint8_t> null_rows_;
  std::vector<int64_t> ids_, lengths_, seen_;
  std::vector<float> dense_;
  int64_t first_id_[2] = {0, 0}, first_length_[2] = {0, 0};
  Ids groups_[2];
  const float* dense_at_[2] = {nullptr, nullptr};
  int64_t stride_[2] = {0, 0};
  Call call_{};
};

thread_local Reading reading;

// Requests that were read by several threads, as one call. Each row has its own user in all of them.
class Joined {
 public:
  std::vector<float> scores;

  const Call* join(const Encoded* const* parts, int64_t count) {
    const Call& like = *parts[0]->call;
    const int64_t features = like.groups[0].features, stride = like.stride[0];
    rows_ = 0;
    for (int64_t p = 0; p < count; ++p) rows_ += parts[p]->rows;
    ids_.clear();
    lengths_.clear();
    dense_.clear();
    from_.assign(size_t(count), 0);
    for (int64_t f = 0; f < features; ++f)
      for (int64_t p = 0; p < count; ++p) {
        const int64_t* lengths = parts[p]->lengths + f * parts[p]->rows;
        const int64_t* ids = parts[p]->ids + from_[size_t(p)];
        const int64_t total = std::accumulate(lengths, lengths + parts[p]->rows, int64_t{0});
        lengths_.insert(lengths_.end(), lengths, lengths + parts[p]->rows);
        ids_.insert(ids_.end(), ids, ids + total);
        from_[size_t(p)] += total;
      }
    for (int64_t p = 0; p < count; ++p)
      dense_.insert(dense_.end(), parts[p]->dense, parts[p]->dense + parts[p]->rows * stride);
    group_ = {ids_.data(), nullptr, lengths_.data(), nullptr, rows_, 0, features,
              int64_t(ids_.size())};
    dense_at_[0] = dense_at_[1] = dense_.data();
    stride_[0] = stride_[1] = stride;
    call_ = {&group_, like.group, like.place, dense_at_, stride_, like.count};
    scores.resize(size_t(rows_));
    return &call_;
  }

  int64_t rows() const { return rows_; }

 private:
  std::vector<int64_t> ids_, lengths_, from_;  // from_: first id of the next feature, by part
  std::vector<float> dense_;
  int64_t rows_ = 0;
  Ids group_{};
  const float* dense_at_[2] = {nullptr, nullptr};
  int64_t stride_[2] = {0, 0};
  Call call_{};
};

thread_local Joined joined;

}  // namespace

extern "C" {

// Dense numbers as a model sees them, in their place. Returns kNone, or kUnread where one is infinite.
int32_t embedcomp_standards(const Feature* feature, float* numbers, int64_t count) {
  return standardise(*feature, count, numbers, 1) ? kNone : kUnread;
}

// Read a request. Returns kNone, or kUnread where Python has to. What is read is there until the
// thread reads another one.
int32_t embedcomp_read(const Reader* reader, const Request* request, Encoded* out) {
  return reading.read(*reader, *request, *out) ? kNone : kUnread;
}

// Read a request of `most` rows at most and score it: probabilities. Returns a Problem.
int32_t embedcomp_answer(const Program* program, const Reader* reader, const Request* request,
                         int64_t most, float* scores, Encoded* out, int64_t* bad) {
  if (!reading.read(*reader, *request, *out)) return kUnread;
  if (out->rows > most) return kTooLarge;
  std::vector<float>& user = reading.user;
  const bool shared = out->shares_user && program->user_count > 0;
  if (shared) {
    user.resize(size_t(program->user_width));
    const int32_t problem = embedcomp_user(program, out->call, user.data(), bad);
    if (problem != kNone) return problem;
  }
  const int32_t problem = embedcomp_score(program, out->call, shared ? user.data() : nullptr, 0,
                                          out->rows, 1, scores, bad);
  reading.forget();
  return problem;
}

// Score requests that were read, none of which shares a user, in one call: probabilities of each.
// Returns a Problem; what is bad is then a row of all of them.
int32_t embedcomp_join(const Program* program, const Encoded* const* parts, int64_t count,
                       float* const* scores, int64_t* bad) {
  const Call* call = joined.join(parts, count);
  const int32_t problem =
      embedcomp_score(program, call, nullptr, 0, joined.rows(), 1, joined.scores.data(), bad);
  if (problem != kNone) return problem;
  const float* from = joined.scores.data();
  for (int64_t p = 0; p < count; from += parts[p]->rows, ++p)
    std::copy_n(from, parts[p]->rows, scores[p]);
  return kNone;
}

}  // extern "C"
