// Reads lines "side hex" from standard input and prints, for each, the header encoded again in hex and as JSON, or
// "unknown" or "error TEXT". The test suite compares that with the protocol's vectors.
#include <cstdio>
#include <iostream>
#include <string>

#include "shotstream/json.hpp"

namespace {

std::string from_hex(const std::string& hex) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
        bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    return bytes;
}

std::string to_hex(const char* data, std::size_t size) {
    static const char digits[] = "0123456789abcdef";
    std::string hex;
    for (std::size_t i = 0; i < size; ++i) {
        const auto byte = static_cast<unsigned char>(data[i]);
        hex += digits[byte >> 4];
        hex += digits[byte & 15];
    }
    return hex;
}

template <class Side>
void answer(const std::string& header) {
    const auto message = shotstream::wire::decode<Side>(header.data(), header.size());
    if (!message) {
        std::cout << "unknown\n";
        return;
    }
    const auto again = std::visit([](const auto& one) { return shotstream::wire::encode(one); }, *message);
    std::cout << "ok " << to_hex(again.data(), again.size()) << ' ' << shotstream::wire::to_json(*message) << '\n';
}

}  // namespace

int main() {
    std::string line;
    while (std::getline(std::cin, line)) {
        const auto space = line.find(' ');
        const std::string header = from_hex(line.substr(space + 1));
        try {
            line.substr(0, space) == "client" ? answer<shotstream::msg::FromClient>(header)
                                              : answer<shotstream::msg::FromServer>(header);
        } catch (const shotstream::DecodeError& error) {
            std::cout << "error " << error.what() << '\n';
        }
    }
}
