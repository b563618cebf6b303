// ZeroMQ as this client needs it: one DEALER that never blocks, and a monitor that tells when its connection comes and
// goes. Knows parts, not messages.
#pragma once

#include <zmq.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "wire.hpp"

namespace shotstream {

/// Keys of CURVE encryption, Z85 text of 40 characters each. Without `server_key` the connection is plain.
/// Without a key pair of its own the client makes one.
struct CurveKeys {
    std::string server_key, public_key, secret_key;
};

/// One received part; owns the bytes, is moved and never copied. May outlive its socket and may be freed on any thread.
class Part {
public:
    Part() noexcept { zmq_msg_init(&raw_); }
    Part(Part&& other) noexcept : Part() { zmq_msg_move(&raw_, &other.raw_); }
    Part& operator=(Part&& other) noexcept {
        zmq_msg_move(&raw_, &other.raw_);
        return *this;
    }
    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;
    ~Part() { zmq_msg_close(&raw_); }

    const std::uint8_t* data() const noexcept { return static_cast<const std::uint8_t*>(zmq_msg_data(&raw_)); }
    std::size_t size() const noexcept { return zmq_msg_size(&raw_); }
    std::string_view view() const noexcept { return {reinterpret_cast<const char*>(data()), size()}; }
    zmq_msg_t* raw() noexcept { return &raw_; }

private:
    mutable zmq_msg_t raw_;
};

/// What happened to the connection.
struct LinkEvent {
    enum Kind { up, down, refused } kind;
    std::string text;
};

class Socket {
public:
    /// Begins to connect, in the background. Throws std::runtime_error when the endpoint or a key is no such thing.
    Socket(const std::string& endpoint, const CurveKeys& keys, std::uint64_t max_part_bytes)
        : context_(zmq_ctx_new()),
          dealer_(open(ZMQ_DEALER)),
          monitor_(open(ZMQ_PAIR)),
          encrypted_(!keys.server_key.empty()) {
        set(ZMQ_LINGER, 0);
        set(ZMQ_IMMEDIATE, 1);
        set(ZMQ_SNDHWM, 1024);
        set(ZMQ_RCVHWM, 1000);
        set(ZMQ_HEARTBEAT_IVL, 1000);
        set(ZMQ_HEARTBEAT_TIMEOUT, 3000);
        set(ZMQ_HEARTBEAT_TTL, 3000);
        set(ZMQ_HANDSHAKE_IVL, 3000);
        set(ZMQ_RECONNECT_IVL, 100);
        set(ZMQ_RECONNECT_IVL_MAX, 5000);
        set(ZMQ_TCP_KEEPALIVE, 1);
        const auto largest = static_cast<std::int64_t>(max_part_bytes);
        zmq_setsockopt(dealer_.get(), ZMQ_MAXMSGSIZE, &largest, sizeof largest);
        if (encrypted_) encrypt(keys);
        watch();
        if (zmq_connect(dealer_.get(), endpoint.c_str()) != 0)
            throw std::runtime_error("cannot connect to " + endpoint + ": " + zmq_strerror(zmq_errno()));
    }

    /// False when it cannot be sent now; then nothing of it was sent.
    bool send(const wire::Buffer& header) noexcept {
        return zmq_send(dealer_.get(), magic.data(), magic.size(), ZMQ_DONTWAIT | ZMQ_SNDMORE) >= 0 &&
               zmq_send(dealer_.get(), header.data(), header.size(), ZMQ_DONTWAIT) >= 0;
    }

    /// Takes the next message, if there is one; parts beyond `most` are dropped.
    bool receive(std::vector<Part>& parts, std::size_t most = 8) {
        parts.clear();
        for (;;) {
            Part part;
            if (zmq_msg_recv(part.raw(), dealer_.get(), ZMQ_DONTWAIT) < 0) return !parts.empty();
            const bool more = zmq_msg_more(part.raw()) != 0;
            if (parts.size() < most) parts.push_back(std::move(part));
            if (!more) return true;
        }
    }

    /// What has happened to the connection since the last call, one thing at a time.
    std::optional<LinkEvent> next_event() {
        Part number, address;
        while (zmq_msg_recv(number.raw(), monitor_.get(), ZMQ_DONTWAIT) >= 0) {
            while (zmq_msg_more(number.raw()) && zmq_msg_recv(address.raw(), monitor_.get(), ZMQ_DONTWAIT) >= 0 &&
                   zmq_msg_more(address.raw())) {
            }
            if (number.size() < 6) continue;
            std::uint16_t event;
            std::uint32_t value;
            std::memcpy(&event, number.data(), sizeof event);
            std::memcpy(&value, number.data() + 2, sizeof value);
            if (auto told = explain(event, value)) return told;
        }
        return std::nullopt;
    }

    /// Lets what was sent last go out when the socket closes, for at most this long.
    void linger(int ms) noexcept { zmq_setsockopt(dealer_.get(), ZMQ_LINGER, &ms, sizeof ms); }

private:
    struct CloseContext {
        void operator()(void* context) const noexcept { zmq_ctx_term(context); }
    };
    struct CloseSocket {
        void operator()(void* socket) const noexcept { zmq_close(socket); }
    };

    void* open(int type) {
        void* socket = context_ ? zmq_socket(context_.get(), type) : nullptr;
        if (!socket) throw std::runtime_error(std::string("no ZeroMQ socket: ") + zmq_strerror(zmq_errno()));
        const int none = 0;
        zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
        return socket;
    }
    void set(int option, int value) {
        if (zmq_setsockopt(dealer_.get(), option, &value, sizeof value) != 0)
            throw std::runtime_error(std::string("ZeroMQ option: ") + zmq_strerror(zmq_errno()));
    }
    void encrypt(CurveKeys keys) {
        if (!zmq_has("curve")) throw std::runtime_error("curve: this libzmq was built without CURVE encryption");
        if (keys.public_key.empty() && keys.secret_key.empty()) {
            char own_public[41], own_secret[41];
            if (zmq_curve_keypair(own_public, own_secret) != 0) throw std::runtime_error("curve: cannot make keys");
            keys.public_key = own_public;
            keys.secret_key = own_secret;
        }
        key(ZMQ_CURVE_SERVERKEY, keys.server_key, "server_key");
        key(ZMQ_CURVE_PUBLICKEY, keys.public_key, "public_key");
        key(ZMQ_CURVE_SECRETKEY, keys.secret_key, "secret_key");
    }
    void key(int option, const std::string& text, const char* name) {
        if (text.size() != 40 || zmq_setsockopt(dealer_.get(), option, text.c_str(), 41) != 0)
            throw std::runtime_error(std::string("curve: ") + name + " is no key of 40 characters in Z85");
    }
    void watch() {
        constexpr int events = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED |
                               ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                               ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
        if (zmq_socket_monitor(dealer_.get(), "inproc://monitor", events) != 0 ||
            zmq_connect(monitor_.get(), "inproc://monitor") != 0)
            throw std::runtime_error(std::string("no ZeroMQ monitor: ") + zmq_strerror(zmq_errno()));
    }
    std::optional<LinkEvent> explain(int event, std::uint32_t value) const {
        switch (event) {
            case ZMQ_EVENT_HANDSHAKE_SUCCEEDED: return LinkEvent{LinkEvent::up, ""};
            case ZMQ_EVENT_DISCONNECTED: return LinkEvent{LinkEvent::down, ""};
            case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
                return LinkEvent{LinkEvent::refused, "curve: the server refuses this key, " + std::to_string(value)};
            default: break;
        }
        const char* why = encrypted_ ? "curve: the handshake failed: server_key is not this server's, the server does "
                                       "not know this client's key, or it does not encrypt"
                                     : "curve: the handshake failed: the server wants CURVE keys and none were given, "
                                       "or no ShotStream server listens there";
        return LinkEvent{LinkEvent::refused, why};
    }

    std::unique_ptr<void, CloseContext> context_;  // closed last
    std::unique_ptr<void, CloseSocket> dealer_, monitor_;
    bool encrypted_;
};

}  // namespace shotstream
