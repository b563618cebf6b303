// Frames between the network and the screen: when each is due, which are dropped, and what may be sent next.
// Plain logic over header numbers; time comes from the caller, in seconds of any steady clock.
#pragma once

#include <algorithm>
#include <deque>
#include <optional>

#include "server_messages.hpp"
#include "socket.hpp"

namespace shotstream {

/// One picture. Its bytes lie in the received ZeroMQ message and live as long as the Frame; move it where it is needed,
/// also to another thread. rgb24, rgba32 and bgra32 are rows from the top, `stride` bytes apart; jpeg is not decoded.
class Frame {
public:
    Frame() = default;
    Frame(msg::Frame head, Part payload) : header(std::move(head)), payload_(std::move(payload)) {}

    msg::Frame header;

    const std::uint8_t* data() const noexcept { return payload_.data(); }
    std::size_t size() const noexcept { return payload_.size(); }
    /// Bytes of a pixel; 0 for encodings without rows.
    unsigned pixel_bytes() const noexcept {
        return header.enc == "rgb24" ? 3u : header.enc == "rgba32" || header.enc == "bgra32" ? 4u : 0u;
    }
    /// Bytes from one row to the next; 0 for encodings without rows.
    std::uint64_t stride() const noexcept { return header.stride ? header.stride : header.w * pixel_bytes(); }
    /// Does the payload hold all rows that the header promises? Frames for which it does not are never handed out.
    bool whole() const noexcept {
        if (header.enc == "none") return true;
        if (!pixel_bytes()) return size() > 0;
        constexpr std::uint64_t most = 1u << 20;
        if (!header.w || !header.h || header.w > most || header.h > most || stride() > 8 * most) return false;
        const std::uint64_t row = header.w * pixel_bytes();
        return stride() >= row && size() >= stride() * (header.h - 1) + row;
    }

private:
    Part payload_;
};

class FrameQueue {
public:
    struct Counts {
        std::uint64_t received = 0, presented = 0;
        std::uint64_t dropped = 0;  ///< flushed, skipped because they were late, or announced as a gap
        std::uint64_t gaps = 0;     ///< of these: announced by the server as a gap other than "flushed"
        std::uint64_t holes = 0;    ///< numbers that never came and were never announced: a fault
        std::uint64_t late = 0;     ///< times that nothing was there to show
    };

    void configure(const msg::SessionOpened& opened) {
        time_base_ = opened.tb ? static_cast<double>(opened.tb) : 90000.0;
        interval_ = opened.fps[0] ? static_cast<double>(opened.fps[1]) / static_cast<double>(opened.fps[0]) : 1.0 / 16;
        window_ = opened.window;
        step_ = std::max<std::uint64_t>(1, opened.chunk_frames / 2);
        most_ = 2 * window_ + opened.chunk_frames + 16;
        if (!opened.resumed) {
            next_seq_ = opened.next_seq;
            granted_ = next_seq_ + window_;
            epoch_ = opened.epoch;
        }
    }

    // --- from the server ---------------------------------------------------------------------------------------------
    /// False if the server sent more than it was allowed to, by far; the frame is dropped.
    bool push(Frame frame) {
        const std::uint64_t seq = frame.header.seq;
        if (seq < next_seq_) return true;  // sent again after a resume
        ++counts_.received;
        counts_.holes += seq - next_seq_;
        next_seq_ = seq + 1;
        if (frame.header.epoch < epoch_ || frames_.size() >= most_) {
            ++counts_.dropped;
            return frame.header.epoch < epoch_;
        }
        const double at = static_cast<double>(frame.header.pts) / time_base_;
        const bool follows = seq == last_seq_ + 1 && frame.header.epoch == last_epoch_ && at > last_at_;
        frames_.push_back({std::move(frame), follows ? at - last_at_ : interval_});
        last_seq_ = seq;
        last_epoch_ = frames_.back().frame.header.epoch;
        last_at_ = at;
        return true;
    }
    /// Queued frames of earlier epochs are out of date; what comes next is due at once.
    void flush(std::uint64_t epoch) {
        epoch_ = std::max(epoch_, epoch);
        const auto old = [this](const Queued& one) { return one.frame.header.epoch < epoch_; };
        const auto kept = std::remove_if(frames_.begin(), frames_.end(), old);
        counts_.dropped += static_cast<std::uint64_t>(frames_.end() - kept);
        frames_.erase(kept, frames_.end());
        started_ = false;
    }
    void gap(const msg::Gap& gap) {
        if (gap.until <= next_seq_) return;
        counts_.holes += gap.first > next_seq_ ? gap.first - next_seq_ : 0;
        const std::uint64_t missing = gap.until - std::max(gap.first, next_seq_);
        counts_.dropped += missing;
        if (gap.reason != "flushed") counts_.gaps += missing;
        next_seq_ = gap.until;
    }

    // --- to the screen -----------------------------------------------------------------------------------------------
    /// The frame that is due at `now`, once. Frames that a later one has overtaken are dropped.
    std::optional<Frame> present(double now) {
        if (frames_.empty()) {
            if (started_ && !starving_ && !paused && now >= due_last_ + interval_) {
                starving_ = true;
                ++counts_.late;
            }
            return std::nullopt;
        }
        // The clock is set by the first frame, after a flush or a drought, and when the game itself stood still.
        if (!started_ || starving_ || now - due() > patience) due_last_ = now - frames_.front().after;
        started_ = true;
        starving_ = false;
        while (frames_.size() > 1 && due() + frames_[1].after <= now) {
            due_last_ = due();
            frames_.pop_front();
            ++counts_.dropped;
        }
        if (due() > now) return std::nullopt;
        due_last_ = due();
        return take();
    }
    /// The next frame, due or not: for recorders.
    std::optional<Frame> take() {
        if (frames_.empty()) return std::nullopt;
        std::optional<Frame> frame(std::move(frames_.front().frame));
        frames_.pop_front();
        ++counts_.presented;
        return frame;
    }

    // --- credit ------------------------------------------------------------------------------------------------------
    /// Number of the first frame that was neither presented nor dropped.
    std::uint64_t played() const { return frames_.empty() ? next_seq_ : frames_.front().frame.header.seq; }
    std::uint64_t next_seq() const { return next_seq_; }
    /// What may be granted now, if that is worth a message.
    std::optional<std::uint64_t> credit() const {
        const std::uint64_t upto = played() + window_;
        // Room for a whole chunk is told at once: heard of three frames later, it begins three frames later.
        const bool fits = granted_ < next_seq_ + 2 * step_ && upto >= next_seq_ + 2 * step_;
        if (upto >= granted_ + step_ || fits || (frames_.empty() && upto > granted_)) return upto;
        return std::nullopt;
    }
    std::uint64_t allowed() const { return std::max(granted_, played() + window_); }
    void granted(std::uint64_t upto) { granted_ = std::max(granted_, upto); }

    std::size_t size() const { return frames_.size(); }
    double lead_s() const { return static_cast<double>(frames_.size()) * interval_; }
    const Counts& counts() const { return counts_; }
    bool paused = false;  ///< nothing is expected: an empty queue is not late

    /// Further behind than this, the clock is set anew instead of frames being skipped.
    static constexpr double patience = 0.5;

private:
    struct Queued {
        Frame frame;
        double after;  // seconds behind the frame before it; where numbers or epochs jump, one interval
    };
    double due() const { return due_last_ + frames_.front().after; }

    std::deque<Queued> frames_;
    Counts counts_;
    double time_base_ = 90000.0, interval_ = 1.0 / 16;
    std::uint64_t window_ = 24, step_ = 6, most_ = 76;
    std::uint64_t next_seq_ = 0, granted_ = 24, epoch_ = 0;
    std::uint64_t last_seq_ = biggest, last_epoch_ = 0;  // of the frame queued last
    double last_at_ = 0.0;
    bool started_ = false, starving_ = false;
    double due_last_ = 0.0;  // when the frame that left the queue last was due
};

}  // namespace shotstream
