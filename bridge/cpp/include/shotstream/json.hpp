// Messages as JSON text, for logs and for the C interface. What goes on the wire is printed, in the same order.
#pragma once

#include <cmath>
#include <cstdio>

#include "client_messages.hpp"
#include "server_messages.hpp"

namespace shotstream::wire {

class JsonPrinter {
public:
    explicit JsonPrinter(std::string& out) : out_(out) {}

    void value(bool v) { out_ += v ? "true" : "false"; }
    void value(std::uint64_t v) { out_ += std::to_string(v); }
    void value(std::int64_t v) { out_ += std::to_string(v); }
    void value(std::nullptr_t) { out_ += "null"; }
    void value(double v) {
        char digits[40];
        std::snprintf(digits, sizeof digits, "%.17g", v);
        out_ += std::isfinite(v) ? digits : "null";  // JSON has no other word for it
    }
    void value(const std::string& v) { text(v); }
    void value(const Scalar& v) {
        std::visit([this](const auto& one) { value(one); }, v.base());
    }
    void value(const Pair& v) { value(std::vector<std::uint64_t>(v.begin(), v.end())); }
    void value(const Params& v) {
        const char* before = "{";
        for (const auto& [key, one] : v) entry(before, key, one);
        out_ += v.empty() ? "{}" : "}";
    }
    template <class T> void value(const std::optional<T>& v) { v ? value(*v) : value(nullptr); }
    template <class T> void value(const std::vector<T>& v) {
        out_ += '[';
        for (std::size_t i = 0; i < v.size(); ++i) {
            if (i) out_ += ", ";
            value(v[i]);
        }
        out_ += ']';
    }
    template <class T, std::enable_if_t<HasFields<T>::value, int> = 0> void value(const T& v) {
        const char* before = "{";
        if constexpr (HasType<T>::value) entry(before, "t", std::string(T::type));
        each_field(v, [&](const char* key, const auto& one) { entry(before, key, one); });
        out_ += *before == '{' ? "{}" : "}";
    }

private:
    template <class T> void entry(const char*& before, std::string_view key, const T& v) {
        out_ += before;
        before = ", ";
        text(key);
        out_ += ": ";
        value(v);
    }
    void text(std::string_view v) {
        out_ += '"';
        for (const char c : v) {
            if (c == '"' || c == '\\') {
                out_ += '\\';
                out_ += c;
            } else if (static_cast<unsigned char>(c) < 0x20) {
                char code[8];
                std::snprintf(code, sizeof code, "\\u%04x", c);
                out_ += code;
            } else {
                out_ += c;
            }
        }
        out_ += '"';
    }
    std::string& out_;
};

/// A message as one line of JSON.
template <class Message>
std::string to_json(const Message& message) {
    std::string out;
    JsonPrinter(out).value(message);
    return out;
}
template <class... Messages>
std::string to_json(const std::variant<Messages...>& message) {
    return std::visit([](const auto& one) { return to_json(one); }, message);
}

}  // namespace shotstream::wire
