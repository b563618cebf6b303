// One connection to a server: greeting, sessions, clock, and coming back after it was lost. `poll()` does everything,
// never blocks, and calls the callbacks; there is no thread but ZeroMQ's own. Use a client and its sessions from one
// thread at a time.
#pragma once

#include <chrono>

#include "session.hpp"

namespace shotstream {

inline constexpr Pair protocol_version{1, 0};

struct Options {
    std::string endpoint = "tcp://127.0.0.1:5570";
    std::string name = "cpp/1.0";  ///< who this is, for the server's log
    std::string token{};
    std::string role = "player";
    std::vector<std::string> encodings{"rgb24", "rgba32", "bgra32", "jpeg"};
    bool stats = false;  ///< msg::Stats every second
    CurveKeys curve{};
    std::uint64_t max_part_bytes = 64u << 20;  ///< a server that sends larger parts is disconnected
};

/// Something that concerns no single request. `fatal`: the client has given up.
struct Problem {
    std::string code, message;
    bool fatal = false;
};

class Client {
public:
    enum class State { connecting, greeting, ready, failed };

    /// Begins to connect; poll() does the rest. Throws std::runtime_error for an impossible endpoint or key.
    explicit Client(Options options)
        : options_(std::move(options)),
          socket_(std::make_unique<Socket>(options_.endpoint, options_.curve, options_.max_part_bytes)) {
        since_ = now();
    }
    /// Says goodbye, so that the server frees the sessions at once; takes 50 ms at most.
    ~Client() {
        msg::Goodbye goodbye;
        goodbye.reason = "client ends";
        if (state_ == State::ready && send(wire::encode(goodbye))) socket_->linger(50);
    }
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    State state() const { return state_; }
    /// The last problem, "code: text"; empty if there was none.
    const std::string& error() const { return error_; }
    /// The server's answer to the greeting. Meaningful once state() has been ready.
    const msg::Welcome& welcome() const { return welcome_; }

    /// Every message from the server but frames, after the client itself has acted on it.
    std::function<void(const msg::FromServer&)> on_message;
    std::function<void(const Problem&)> on_problem;

    /// A new film. May be called at any time; `answer` is told when it is open or refused. The client owns the session.
    Session& open(msg::OpenSession wanted, OnAnswer answer = {}) {
        sessions_.emplace_back(new Session(std::move(wanted), std::move(answer), next_id_));
        return *sessions_.back();
    }
    /// The session with this id, or null: for those that a fork has made.
    Session* session(const std::string& id) const {
        for (const auto& one : sessions_)
            if (one->id() == id && !id.empty()) return one.get();
        return nullptr;
    }
    /// Frees a closed session. Not from within a callback.
    void erase(Session& session) {
        if (session.state() != Session::State::closed) return;
        const auto same = [&session](const auto& one) { return one.get() == &session; };
        sessions_.erase(std::remove_if(sessions_.begin(), sessions_.end(), same), sessions_.end());
    }

    /// Reads what has come, sends what is due, calls callbacks. Returns how many messages came. Call it every frame.
    int poll() {
        int count = 0;
        while (state_ != State::failed) {
            const auto event = socket_->next_event();
            if (!event) break;
            link(*event);
        }
        for (; state_ != State::failed && count < most_per_poll && socket_->receive(parts_); ++count) receive();
        if (state_ != State::failed) tick(now());
        if (state_ == State::failed) socket_.reset();
        return count;
    }

    /// Seconds of the steady clock, as Session::present may be given.
    static double now() {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }
    /// The server's clock (us) less ours (now() in us), from the ping with the shortest way; nothing before a pong.
    std::optional<double> clock_offset_us() const { return clock_offset_us_; }
    double round_trip_ms() const { return best_round_trip_us_ / 1000; }

    static constexpr int most_per_poll = 512;
    static constexpr double hello_s = 5.0, ping_s = 2.0, ping_busy_s = 10.0;

private:
    bool send(const wire::Buffer& header) {
        if (!socket_ || !socket_->send(header)) return false;
        last_sent_ = now();
        return true;
    }

    void problem(std::string code, std::string message, bool fatal = false) {
        error_ = code + ": " + message;
        if (fatal) {
            state_ = State::failed;
            for (std::size_t i = 0; i < sessions_.size(); ++i) sessions_[i]->closed(code, message);
        }
        if (on_problem) on_problem({std::move(code), std::move(message), fatal});
    }

    // --- the connection ----------------------------------------------------------------------------------------------
    void link(const LinkEvent& event) {
        if (event.kind == LinkEvent::refused) {
            problem("unauthorized", event.text);
        } else if (event.kind == LinkEvent::up) {
            greet();
        } else {
            disconnect();
        }
    }
    void greet() {
        disconnect();
        state_ = State::greeting;
        hello_sent_ = detail::never;
    }
    void disconnect() {
        state_ = State::connecting;
        since_ = now();
        for (const auto& one : sessions_) one->lost();
    }

    void tick(double now) {
        if (state_ == State::connecting && now - since_ >= hello_s) {
            since_ = now;
            problem("unreachable", "no server answers at " + options_.endpoint + "; still trying");
        }
        if (state_ == State::greeting && now - hello_sent_ >= hello_s) {
            if (hello_sent_ > 0) problem("unreachable", options_.endpoint + " does not answer hello; still trying");
            if (send(wire::encode(hello()))) hello_sent_ = now;
        }
        if (state_ != State::ready) return;
        for (std::size_t i = 0; i < sessions_.size(); ++i)
            sessions_[i]->tick(now, [this](const wire::Buffer& header) { return send(header); });
        if (now - last_sent_ >= ping_s || now - last_ping_ >= ping_busy_s) {
            msg::Ping ping;
            ping.t0 = static_cast<std::uint64_t>(Client::now() * 1e6);
            if (send(wire::encode(ping))) last_ping_ = now;
        }
    }

    msg::Hello hello() const {
        msg::Hello hello;
        hello.proto = protocol_version;
        hello.client = options_.name;
        hello.token = options_.token;
        hello.role = options_.role;
        hello.stats = options_.stats;
        hello.accept.enc = options_.encodings;
        hello.accept.max_payload = options_.max_part_bytes;
        return hello;
    }

    // --- messages ----------------------------------------------------------------------------------------------------
    void receive() {
        if (parts_.empty() || parts_[0].view() != magic) {
            const std::string_view first = parts_.empty() ? std::string_view() : parts_[0].view().substr(0, 16);
            if (state_ == State::greeting && first.substr(0, 4) == magic.substr(0, 4))
                problem("version", "the server speaks " + std::string(first) + ", this client SST/1", true);
            else
                problem("bad_envelope", "what came from " + options_.endpoint + " is no ShotStream message");
            return;
        }
        if (parts_.size() < 2) return problem("bad_envelope", "a message without a header");
        try {
            auto message = wire::decode<msg::FromServer>(parts_[1].data(), parts_[1].size());
            if (!message) return;  // of a newer server
            if (auto* header = std::get_if<msg::Frame>(&*message)) return frame(std::move(*header));
            std::visit([this](const auto& one) { handle(one); }, *message);
            if (on_message) on_message(*message);
        } catch (const DecodeError& error) {
            problem("bad_message", error.what());
        }
    }

    void frame(msg::Frame header) {
        Session* to = session(header.session);
        if (!to) return;
        Frame frame(std::move(header), parts_.size() > 2 ? std::move(parts_[2]) : Part());
        if (!frame.whole())
            return problem("bad_message", "frame " + std::to_string(frame.header.seq) + " has " +
                                              std::to_string(frame.size()) + " bytes, its header says otherwise");
        if (!to->frames_.push(std::move(frame))) problem("bad_message", "the server sends more frames than it may");
    }

    static std::string dotted(const Pair& version) {
        return std::to_string(version[0]) + '.' + std::to_string(version[1]);
    }

    template <class Other> void handle(const Other&) {}  // the game's business, not ours

    void handle(const msg::Welcome& welcome) {
        if (welcome.proto[0] != protocol_version[0])
            return problem("version",
                           "the server speaks protocol " + dotted(welcome.proto) + ", this client " +
                               dotted(protocol_version) + "; update the older of the two",
                           true);
        if (state_ != State::greeting) return;
        welcome_ = welcome;
        state_ = State::ready;
        last_ping_ = detail::never;
        best_round_trip_us_ = 0;
    }
    void handle(const msg::SessionOpened& opened) {
        if (Session* known = session(opened.session)) {
            if (known->state() == Session::State::resuming) known->opened(opened);
            return;
        }
        for (const auto& one : sessions_)
            if (one->state() == Session::State::opening && one->wanted_.id == opened.re) return one->opened(opened);
        for (const auto& one : sessions_) {
            auto& forks = one->forks_;
            const auto asked = std::find(forks.begin(), forks.end(), opened.re);
            if (asked == forks.end()) continue;
            forks.erase(asked);
            return open({}).opened(opened);
        }
    }
    void handle(const msg::Ack& ack) {
        answer({ack.re, true, ack.status, "", false, 0}, ack.session);
    }
    void handle(const msg::Rejected& rejected) {
        answer({rejected.re, false, rejected.code, rejected.message, false, 0}, rejected.session);
    }
    void handle(const msg::Error& error) {
        if (error.code == "hello_required" && state_ == State::ready) return greet();
        const bool gone = error.code == "no_session" || error.code == "expired" || error.code == "bad_token";
        const bool refused = error.code == "version" || (error.code == "unauthorized" && !error.re);
        std::string text = error.message;
        if (gone) text += " (the server was started again, or waited too long: open a new session)";
        const Answer told{error.re, false, error.code, text, error.retryable, error.retry_after_ms};
        const bool ours = error.re && answer(told, error.session);
        if (Session* lost = session(error.session); lost && gone) lost->closed(error.code, text);
        if (!ours || gone || error.fatal) problem(error.code, text, error.fatal || refused);
    }
    bool answer(const Answer& answer, const std::string& id) {
        if (Session* to = session(id)) return to->answered(answer);
        for (std::size_t i = 0; i < sessions_.size(); ++i)
            if (sessions_[i]->open_answered(answer)) return true;
        return false;
    }
    void handle(const msg::ShotBegin& shot) {
        if (Session* to = session(shot.session); to && shot.flush) to->frames_.flush(shot.epoch);
    }
    void handle(const msg::Gap& gap) {
        if (Session* to = session(gap.session)) to->frames_.gap(gap);
    }
    void handle(const msg::SessionClosed& closed) {
        if (Session* to = session(closed.session)) to->closed(closed.code, closed.reason);
    }
    void handle(const msg::Pong& pong) {
        const double t3 = now() * 1e6, t0 = static_cast<double>(pong.t0);
        const double t1 = static_cast<double>(pong.t1), t2 = static_cast<double>(pong.t2);
        const double round_trip = (t3 - t0) - (t2 - t1);
        if (round_trip < 0 || (best_round_trip_us_ > 0 && round_trip >= best_round_trip_us_)) return;
        best_round_trip_us_ = round_trip;
        clock_offset_us_ = ((t1 - t0) + (t2 - t3)) / 2;
    }
    void handle(const msg::ServerGoodbye& goodbye) {
        problem("shutting_down", "the server says goodbye: " + goodbye.reason);
        disconnect();
    }

    Options options_;
    std::unique_ptr<Socket> socket_;
    std::vector<Part> parts_;
    State state_ = State::connecting;
    std::string error_;
    msg::Welcome welcome_;
    std::vector<std::unique_ptr<Session>> sessions_;
    Id next_id_ = 1;
    double since_ = 0, hello_sent_ = detail::never, last_sent_ = detail::never, last_ping_ = detail::never;
    double best_round_trip_us_ = 0;
    std::optional<double> clock_offset_us_;
};

}  // namespace shotstream
