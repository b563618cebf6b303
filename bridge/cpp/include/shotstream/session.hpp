// One film: the requests about it, their answers, and its frames. Made by Client::open and owned by the client.
// A request is kept and sent again, under the same number, until the server answers it.
#pragma once

#include <functional>
#include <random>

#include "client_messages.hpp"
#include "frame_queue.hpp"

namespace shotstream {

/// The server's one answer to a request.
struct Answer {
    Id id = 0;
    bool ok = false;      ///< understood, and done or to be done
    std::string code;     ///< accepted, queued, duplicate, superseded; else an error's code
    std::string message;  ///< for people; empty when ok
    bool retryable = false;
    std::uint64_t retry_after_ms = 0;
};
using OnAnswer = std::function<void(const Answer&)>;

namespace detail {
inline constexpr double never = -1e9;
inline constexpr double retry_s = 1.0;
inline constexpr std::size_t most_pending = 256;

inline std::string random_name() {
    std::random_device device;
    std::string name;
    for (int i = 0; i < 24; ++i) name += "0123456789abcdef"[device() & 15];
    return name;
}
}  // namespace detail

class Session {
public:
    enum class State { opening, open, resuming, closed };

    State state() const { return state_; }
    /// Why the session is closed: "code: text".
    const std::string& closed_because() const { return closed_because_; }
    /// What the server opened: sizes, rate, seed. Meaningful once state() has been open.
    const msg::SessionOpened& info() const { return info_; }
    const std::string& id() const { return info_.session; }

    // --- the story: each returns the request's number, or 0 when the session is closed or too much is unanswered -----
    Id event(msg::Event event, OnAnswer answer = {}) { return request(std::move(event), std::move(answer)); }
    Id prompt(std::string text, std::string at = "auto", std::uint64_t chunks = 0, OnAnswer answer = {}) {
        msg::Prompt prompt;
        prompt.text = std::move(text);
        prompt.at = std::move(at);
        prompt.chunks = chunks;
        return request(std::move(prompt), std::move(answer));
    }
    Id pause(OnAnswer answer = {}) {
        frames_.paused = true;
        return request(msg::Pause{}, std::move(answer));
    }
    Id play(OnAnswer answer = {}) {
        frames_.paused = false;
        return request(msg::Play{}, std::move(answer));
    }
    Id close(OnAnswer answer = {}) { return request(msg::CloseSession{}, std::move(answer)); }
    /// Any request about a session (msg::Steer, Cut, Scene, Choices, Commit, Cancel, Snapshot, Restore, Fork, ...); its
    /// `id` and `session` are filled in. Asked before the session is open, it goes out when it is.
    template <class Request>
    Id request(Request message, OnAnswer answer = {}) {
        if (state_ == State::closed || pending_.size() >= detail::most_pending) return 0;
        const Id id = message.id = numbers_++;
        auto write = [message](const std::string& session) mutable {
            message.session = session;
            return wire::encode(message);
        };
        pending_.push_back({id, std::move(write), std::move(answer), detail::never});
        if constexpr (std::is_same_v<Request, msg::Fork>) forks_.push_back(id);
        return id;
    }

    // --- the picture -------------------------------------------------------------------------------------------------
    /// The frame to show now, once, by its pts; nothing while the one before is still due. `now` in seconds, any steady
    /// clock, always the same. Showing a frame is what grants the server credit for more.
    std::optional<Frame> present(double now) { return frames_.present(now); }
    /// The next frame whether due or not, for recorders. Use either this or present.
    std::optional<Frame> take() { return frames_.take(); }
    const FrameQueue& frames() const { return frames_; }

private:
    friend class Client;
    struct Pending {
        Id id;
        std::function<wire::Buffer(const std::string& session)> write;
        OnAnswer answer;
        double sent;
    };

    Session(msg::OpenSession wanted, OnAnswer answer, Id& numbers)
        : numbers_(numbers), wanted_(std::move(wanted)), opened_answer_(std::move(answer)) {
        wanted_.id = numbers_++;
        if (wanted_.nonce.empty()) wanted_.nonce = detail::random_name();
    }

    bool due(double sent, double now) const { return now - sent >= detail::retry_s; }

    /// Sends what is new and what was not answered in time; stops at the first that cannot be sent.
    template <class Send>
    void tick(double now, Send&& send) {
        if (state_ == State::opening && !open_acked_ && due(open_sent_, now) && send(wire::encode(wanted_)))
            open_sent_ = now;
        if (state_ == State::resuming && due(resume_sent_, now)) {
            if (!resume_.id) resume_.id = numbers_++;
            resume_.session = info_.session;
            resume_.token = info_.token;
            resume_.next_seq = frames_.next_seq();
            if (send(wire::encode(resume_))) resume_sent_ = now;
        }
        if (state_ != State::open) return;
        for (Pending& one : pending_) {
            if (!due(one.sent, now)) continue;
            if (!send(one.write(info_.session))) return;
            one.sent = now;
        }
        if (const auto upto = frames_.credit(); upto || credit_lost_) {
            if (send(wire::encode(credit(upto.value_or(frames_.allowed()))))) {
                frames_.granted(upto.value_or(0));
                credit_lost_ = false;
            }
        }
    }

    msg::Credit credit(std::uint64_t upto) const {
        msg::Credit credit;
        credit.session = info_.session;
        credit.upto = upto;
        credit.played = frames_.played();
        credit.lead_ms = frames_.lead_s() * 1000;
        credit.late = frames_.counts().late;
        credit.dropped = frames_.counts().dropped;
        return credit;
    }

    /// The connection is gone: what was not answered must be sent again on the next one.
    void lost() {
        for (Pending& one : pending_) one.sent = detail::never;
        open_sent_ = resume_sent_ = detail::never;
        resume_.id = 0;
        open_acked_ = false;
        if (state_ == State::open) state_ = State::resuming;
    }

    void opened(const msg::SessionOpened& opened) {
        const bool resumed = state_ == State::resuming;
        info_ = opened;
        info_.resumed = resumed;
        frames_.configure(info_);
        credit_lost_ = resumed;
        state_ = State::open;
        resume_.id = 0;
        if (!resumed) tell(std::exchange(opened_answer_, {}), {opened.re, true, "accepted", "", false, 0});
    }

    void closed(const std::string& code, const std::string& text) {
        if (state_ == State::closed) return;
        const bool was_opening = state_ == State::opening;
        state_ = State::closed;
        closed_because_ = code + ": " + text;
        Answer answer{wanted_.id, false, code, text, false, 0};
        if (was_opening) tell(std::exchange(opened_answer_, {}), answer);
        for (Pending& one : std::exchange(pending_, {})) {
            answer.id = one.id;
            tell(one.answer, answer);
        }
    }

    /// True if it was an answer to something asked here.
    bool answered(const Answer& answer) {
        for (auto one = pending_.begin(); one != pending_.end(); ++one) {
            if (one->id != answer.id) continue;
            const OnAnswer told = std::move(one->answer);
            pending_.erase(one);
            tell(told, answer);
            return true;
        }
        if (resume_.id != 0 && answer.id == resume_.id) {
            if (answer.retryable)
                resume_.id = 0;  // under a new number: the server remembers its answer to the old one
            else if (!answer.ok)
                closed(answer.code, answer.message);
            return true;
        }
        return false;
    }
    bool open_answered(const Answer& answer) {
        if (state_ != State::opening || answer.id != wanted_.id) return false;
        open_acked_ = answer.ok;
        if (answer.code == "model_loading" || answer.code == "rate_limited" || answer.code == "shutting_down")
            wanted_.id = numbers_++;  // passes; the same `nonce` keeps it one film
        else if (!answer.ok)
            closed(answer.code, answer.message);
        return true;
    }
    static void tell(const OnAnswer& told, const Answer& answer) {
        if (told) told(answer);
    }

    Id& numbers_;  // the client's: one row of numbers for all its requests
    State state_ = State::opening;
    msg::OpenSession wanted_;
    msg::SessionOpened info_;
    msg::Resume resume_;
    OnAnswer opened_answer_;
    std::string closed_because_;
    std::deque<Pending> pending_;
    std::vector<Id> forks_;  // asked for, and not there yet
    double open_sent_ = detail::never, resume_sent_ = detail::never;
    bool open_acked_ = false, credit_lost_ = false;
    FrameQueue frames_;
};

}  // namespace shotstream
