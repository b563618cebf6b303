// Headers as bytes and back: one MessagePack map per message, read within limits that hold whatever the bytes are.
// A message is a struct that lists its fields once (`fields`); writing, reading and printing are visitors of that list.
// No sockets here.
#pragma once

#ifndef MSGPACK_NO_BOOST
#define MSGPACK_NO_BOOST
#endif
#include <msgpack.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace shotstream {

/// Number of a request: larger than 0 and increasing within a session.
using Id = std::uint64_t;
/// Two numbers: a version, or a fraction.
using Pair = std::array<std::uint64_t, 2>;
/// Largest integer on the wire.
inline constexpr std::uint64_t biggest = std::uint64_t{1} << 53;
inline constexpr std::string_view magic = "SST/1";

/// A parameter's value: nothing, a bool, a whole number of at most 2^53, a number, or a text.
struct Scalar : std::variant<std::nullptr_t, bool, std::int64_t, double, std::string> {
    using Base = std::variant<std::nullptr_t, bool, std::int64_t, double, std::string>;
    Scalar() : Base(nullptr) {}
    Scalar(std::nullptr_t) : Base(nullptr) {}
    Scalar(bool value) : Base(value) {}
    Scalar(double value) : Base(value) {}
    Scalar(const char* value) : Base(std::string(value)) {}
    Scalar(std::string value) : Base(std::move(value)) {}
    template <class T, std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool>, int> = 0>
    Scalar(T value) : Base(static_cast<std::int64_t>(value)) {}
    const Base& base() const { return *this; }
};

/// Parameters in the order in which they are sent.
using Params = std::vector<std::pair<std::string, Scalar>>;

/// The bytes are no message of this protocol; the text names the field.
struct DecodeError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

namespace wire {

using Buffer = msgpack::sbuffer;

/// What a header may hold at most. A server that sends more is not believed.
inline constexpr std::size_t header_bytes = 1u << 20;
inline msgpack::unpack_limit unpack_limits() { return {4096, 1024, header_bytes, header_bytes, header_bytes, 16}; }

template <class T, class = void>
struct HasFields : std::false_type {};
struct Probe {
    template <class... A> void must(A&&...) {}
    template <class... A> void may(A&&...) {}
    template <class... A> void always(A&&...) {}
};
template <class T>
struct HasFields<T, std::void_t<decltype(T::fields(std::declval<Probe&>()))>> : std::true_type {};

template <class T, class = void>
struct HasType : std::false_type {};
template <class T>
struct HasType<T, std::void_t<decltype(T::type)>> : std::true_type {};

// --- writing ---------------------------------------------------------------------------------------------------------
template <class T>
bool same(const T& a, const T& b);

/// Visits two structs at once: are all fields equal?
template <class T>
struct Comparer {
    const T &a, &b;
    bool equal = true;
    template <class M> void must(const char*, M T::*p) { equal = equal && same(a.*p, b.*p); }
    template <class M> void may(const char* key, M T::*p) { must(key, p); }
    template <class M> void always(const char* key, M T::*p) { must(key, p); }
};

template <class T>
bool same(const T& a, const T& b) {
    if constexpr (HasFields<T>::value) {
        Comparer<T> comparer{a, b};
        T::fields(comparer);
        return comparer.equal;
    } else {
        return a == b;
    }
}
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.empty() && b.empty();  // only ever compared with the default, which is empty
}
template <class T>
bool same(const std::optional<T>& a, const std::optional<T>& b) {
    return !a && !b;
}

/// Calls `emit(key, value)` for each field that goes on the wire: required ones, and those unlike their default.
template <class T, class Emit>
struct Emitter {
    const T& value;
    const T fallback;
    Emit emit;
    template <class M> void must(const char* key, M T::*p) { emit(key, value.*p); }
    template <class M> void always(const char* key, M T::*p) { emit(key, value.*p); }
    template <class M> void may(const char* key, M T::*p) {
        if (!same(value.*p, fallback.*p)) emit(key, value.*p);
    }
};
template <class T, class Emit>
void each_field(const T& value, Emit emit) {
    T::fields(Emitter<T, Emit>{value, T{}, std::move(emit)});
}

class Writer {
public:
    explicit Writer(Buffer& out) : out_(out), pack_(out) {}

    void value(bool v) { v ? pack_.pack_true() : pack_.pack_false(); }
    void value(std::uint64_t v) { pack_.pack_uint64(v); }
    void value(std::int64_t v) { pack_.pack_int64(v); }
    void value(std::nullptr_t) { pack_.pack_nil(); }
    void value(const std::string& v) { text(v); }
    void value(const Scalar& v) {
        std::visit([this](const auto& one) { value(one); }, v.base());
    }
    void value(double v) {  // by hand: msgpack-c packs whole numbers as integers, and 2.0 is not 2 to the reader
        std::uint64_t bits;
        std::memcpy(&bits, &v, sizeof bits);
        char bytes[9] = {'\xcb'};
        for (int i = 0; i < 8; ++i) bytes[1 + i] = static_cast<char>(bits >> (56 - 8 * i));
        out_.write(bytes, sizeof bytes);
    }
    void value(const Pair& v) {
        pack_.pack_array(2);
        value(v[0]);
        value(v[1]);
    }
    void value(const Params& v) {
        pack_.pack_map(static_cast<std::uint32_t>(v.size()));
        for (const auto& [key, one] : v) text(key), value(one);
    }
    template <class T> void value(const std::optional<T>& v) { v ? value(*v) : value(nullptr); }
    template <class T> void value(const std::vector<T>& v) {
        pack_.pack_array(static_cast<std::uint32_t>(v.size()));
        for (const T& one : v) value(one);
    }
    template <class T, std::enable_if_t<HasFields<T>::value, int> = 0> void value(const T& v) {
        std::uint32_t count = HasType<T>::value ? 1 : 0;
        each_field(v, [&count](const char*, const auto&) { ++count; });
        pack_.pack_map(count);
        if constexpr (HasType<T>::value) text("t"), text(T::type);
        each_field(v, [this](const char* key, const auto& one) { text(key), value(one); });
    }

private:
    void text(std::string_view v) {
        pack_.pack_str(static_cast<std::uint32_t>(v.size()));
        pack_.pack_str_body(v.data(), static_cast<std::uint32_t>(v.size()));
    }
    Buffer& out_;
    msgpack::packer<Buffer> pack_;
};

/// The header of a message.
template <class Message>
Buffer encode(const Message& message) {
    Buffer out(256);
    Writer(out).value(message);
    return out;
}

// --- reading ---------------------------------------------------------------------------------------------------------
inline bool is_utf8(std::string_view text) {
    const auto* p = reinterpret_cast<const unsigned char*>(text.data());
    const auto* end = p + text.size();
    while (p < end) {
        if (*p < 0x80) {
            ++p;
            continue;
        }
        const int more = *p >= 0xf0 ? 3 : *p >= 0xe0 ? 2 : 1;
        std::uint32_t point = *p & (0x3fu >> more);
        if (*p < 0xc2 || *p > 0xf4 || end - p <= more) return false;
        for (int i = 1; i <= more; ++i) {
            if ((p[i] & 0xc0) != 0x80) return false;
            point = point << 6 | (p[i] & 0x3fu);
        }
        if ((more == 2 && point < 0x800) || (more == 3 && (point < 0x10000 || point > 0x10ffff))) return false;
        if (point >= 0xd800 && point < 0xe000) return false;
        p += more + 1;
    }
    return true;
}

[[noreturn]] inline void wrong(const char* key, const char* expected) {
    throw DecodeError(std::string("field ") + key + ": expected " + expected);
}

inline std::string_view text(const msgpack::object& from, const char* key) {
    if (from.type != msgpack::type::STR) wrong(key, "a text");
    const std::string_view found(from.via.str.ptr, from.via.str.size);
    if (!is_utf8(found)) wrong(key, "UTF-8");
    return found;
}

inline void read(const msgpack::object& from, const char* key, bool& to) {
    if (from.type != msgpack::type::BOOLEAN) wrong(key, "true or false");
    to = from.via.boolean;
}
inline void read(const msgpack::object& from, const char* key, std::uint64_t& to) {
    if (from.type != msgpack::type::POSITIVE_INTEGER || from.via.u64 > biggest) wrong(key, "an integer in 0..2^53");
    to = from.via.u64;
}
inline void read(const msgpack::object& from, const char* key, double& to) {
    switch (from.type) {
        case msgpack::type::FLOAT32:
        case msgpack::type::FLOAT64: to = from.via.f64; break;
        case msgpack::type::POSITIVE_INTEGER: to = static_cast<double>(from.via.u64); break;
        case msgpack::type::NEGATIVE_INTEGER: to = static_cast<double>(from.via.i64); break;
        default: wrong(key, "a number");
    }
}
inline void read(const msgpack::object& from, const char* key, std::string& to) { to = text(from, key); }
inline void read(const msgpack::object& from, const char* key, Scalar& to) {
    switch (from.type) {
        case msgpack::type::NIL: to = nullptr; break;
        case msgpack::type::BOOLEAN: to = from.via.boolean; break;
        case msgpack::type::POSITIVE_INTEGER:
            if (from.via.u64 > biggest) wrong(key, "an integer in -2^53..2^53");
            to = from.via.u64;
            break;
        case msgpack::type::NEGATIVE_INTEGER:
            if (from.via.i64 < -static_cast<std::int64_t>(biggest)) wrong(key, "an integer in -2^53..2^53");
            to = from.via.i64;
            break;
        case msgpack::type::FLOAT32:
        case msgpack::type::FLOAT64: to = from.via.f64; break;
        case msgpack::type::STR: to = std::string(text(from, key)); break;
        default: wrong(key, "nothing, a bool, a number or a text");
    }
}
inline void read(const msgpack::object& from, const char* key, Pair& to) {
    if (from.type != msgpack::type::ARRAY || from.via.array.size != 2) wrong(key, "two numbers");
    for (int i = 0; i < 2; ++i) read(from.via.array.ptr[i], key, to[static_cast<std::size_t>(i)]);
}
inline void read(const msgpack::object& from, const char* key, Params& to) {
    if (from.type != msgpack::type::MAP) wrong(key, "a map");
    to.clear();
    for (const auto& entry : from.via.map) {
        Scalar value;
        read(entry.val, key, value);
        to.emplace_back(std::string(text(entry.key, key)), std::move(value));
    }
}
template <class T>
std::enable_if_t<HasFields<T>::value> read(const msgpack::object& from, const char* key, T& to);
template <class T>
void read(const msgpack::object& from, const char* key, std::vector<T>& to) {
    if (from.type != msgpack::type::ARRAY) wrong(key, "a list");
    to.clear();
    for (const auto& one : from.via.array) read(one, key, to.emplace_back());
}
template <class T>
void read(const msgpack::object& from, const char* key, std::optional<T>& to) {
    if (from.type == msgpack::type::NIL)
        to.reset();
    else
        read(from, key, to.emplace());
}

/// The value under a key, or null. Of a key that comes twice the last one counts.
inline const msgpack::object* find(const msgpack::object& map, std::string_view key) {
    const msgpack::object* found = nullptr;
    for (const auto& [name, value] : map.via.map)
        if (name.type == msgpack::type::STR && key == std::string_view(name.via.str.ptr, name.via.str.size))
            found = &value;
    return found;
}

template <class T>
struct Reader {
    const msgpack::object& from;
    T& to;
    template <class M> void must(const char* key, M T::*p) {
        const auto* found = find(from, key);
        if (!found) wrong(key, "a value, it is missing");
        read(*found, key, to.*p);
    }
    template <class M> void may(const char* key, M T::*p) {
        if (const auto* found = find(from, key)) read(*found, key, to.*p);
    }
    template <class M> void always(const char* key, M T::*p) { may(key, p); }
};
template <class T>
std::enable_if_t<HasFields<T>::value> read(const msgpack::object& from, const char* key, T& to) {
    if (from.type != msgpack::type::MAP) wrong(key, "a map");
    T::fields(Reader<T>{from, to});
}

template <class Message, class Variant>
bool read_if(const msgpack::object& from, std::string_view type, std::optional<Variant>& to) {
    if (type != Message::type) return false;
    Message message;
    read(from, Message::type, message);
    to.emplace(std::move(message));
    return true;
}
template <class... Messages>
void read_any(const msgpack::object& from, std::string_view type, std::optional<std::variant<Messages...>>& to) {
    (void)(read_if<Messages>(from, type, to) || ...);
}

/// The message in a header; nothing if its type is unknown (a newer server may send more). Throws DecodeError.
template <class Variant>
std::optional<Variant> decode(const void* data, std::size_t size) {
    if (size > header_bytes) throw DecodeError("the header is too large");
    std::optional<Variant> message;
    try {
        std::size_t used = 0;
        const auto by_reference = [](msgpack::type::object_type, std::size_t, void*) { return true; };
        const auto handle = msgpack::unpack(static_cast<const char*>(data), size, used, by_reference, nullptr,
                                            unpack_limits());
        if (used != size) throw DecodeError("bytes behind the header");
        if (handle->type != msgpack::type::MAP) throw DecodeError("the header is no map");
        for (const auto& entry : handle->via.map)
            if (entry.key.type != msgpack::type::STR) throw DecodeError("a key is no text");
        const auto* type = find(handle.get(), "t");
        if (!type) throw DecodeError("field t: it is missing");
        read_any(handle.get(), text(*type, "t"), message);
    } catch (const msgpack::unpack_error& error) {
        throw DecodeError(std::string("no MessagePack within limits: ") + error.what());
    }
    return message;
}

}  // namespace wire
}  // namespace shotstream
