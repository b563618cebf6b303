// What a server sends, field for field as in the protocol; `t` on the wire is each struct's `type`.
// Words with a fixed set of values (`status`, `reason`, ...) are strings: treat those you do not know as "other".
#pragma once

#include "wire.hpp"

namespace shotstream::msg {

/// Where something takes effect: numbers of the shot and of the chunk in it, from 0.
struct Place {
    std::uint64_t shot = 0, chunk = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.may("shot", &Place::shot); v.may("chunk", &Place::chunk);
    }
};

/// A model and its facts. `state_text` says what is being done, or what went wrong.
struct Model {
    std::string name;
    std::uint64_t width = 0, height = 0, fps = 16, chunk_frames = 12, first_chunk_frames = 9;
    std::uint64_t max_shot_chunks = 100, usual_shot_chunks = 7;
    std::string state = "loading", state_text;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("name", &Model::name); v.may("width", &Model::width); v.may("height", &Model::height);
        v.may("fps", &Model::fps); v.may("chunk_frames", &Model::chunk_frames);
        v.may("first_chunk_frames", &Model::first_chunk_frames); v.may("max_shot_chunks", &Model::max_shot_chunks);
        v.may("usual_shot_chunks", &Model::usual_shot_chunks); v.may("state", &Model::state);
        v.may("state_text", &Model::state_text);
    }
};

/// Limits in force, as told in `welcome`. Bytes, seconds and frames; counts are per what the name says.
struct Limits {
    std::uint64_t header_bytes = 65536, part_bytes = 8388608, parts = 8, text_bytes = 4096, cast = 8;
    std::uint64_t params = 32, tags = 16, choices = 4, sessions = 4, sessions_per_connection = 4;
    std::uint64_t connections = 64, window_min = 12, window_max = 96, snapshots = 8, ids = 256;
    std::uint64_t replay_frames = 36, requests_per_s = 30;
    double lease_s = 10.0, session_s = 3600.0, resume_ttl_s = 60.0;
    std::uint64_t bad_messages = 20;
    double ban_s = 60.0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.always("header_bytes", &Limits::header_bytes); v.always("part_bytes", &Limits::part_bytes);
        v.always("parts", &Limits::parts); v.always("text_bytes", &Limits::text_bytes);
        v.always("cast", &Limits::cast); v.always("params", &Limits::params); v.always("tags", &Limits::tags);
        v.always("choices", &Limits::choices); v.always("sessions", &Limits::sessions);
        v.always("sessions_per_connection", &Limits::sessions_per_connection);
        v.always("connections", &Limits::connections); v.always("window_min", &Limits::window_min);
        v.always("window_max", &Limits::window_max); v.always("snapshots", &Limits::snapshots);
        v.always("ids", &Limits::ids); v.always("replay_frames", &Limits::replay_frames);
        v.always("requests_per_s", &Limits::requests_per_s); v.always("lease_s", &Limits::lease_s);
        v.always("session_s", &Limits::session_s); v.always("resume_ttl_s", &Limits::resume_ttl_s);
        v.always("bad_messages", &Limits::bad_messages); v.always("ban_s", &Limits::ban_s);
    }
};

/// Answer to `hello`. `clock_us` is the server's monotonic clock.
struct Welcome {
    static constexpr const char* type = "welcome";
    Pair proto{};
    std::string server;
    std::vector<std::string> enc;
    std::vector<Model> models;
    Limits limits;
    std::vector<std::string> features, directors;
    std::uint64_t clock_us = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("proto", &Welcome::proto); v.must("server", &Welcome::server); v.must("enc", &Welcome::enc);
        v.must("models", &Welcome::models); v.must("limits", &Welcome::limits);
        v.must("features", &Welcome::features); v.must("directors", &Welcome::directors);
        v.must("clock_us", &Welcome::clock_us);
    }
};

/// A model's state has changed.
struct ModelStatus {
    static constexpr const char* type = "model_status";
    Model model;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("model", &ModelStatus::model);
    }
};

/// `fps` is a fraction, `tb` the unit of pts in 1/s; chunk lengths in frames.
struct SessionOpened {
    static constexpr const char* type = "session_opened";
    std::uint64_t re = 0;
    std::string session, token, model;
    std::uint64_t width = 0, height = 0;
    Pair fps{};
    std::uint64_t tb = 0, chunk_frames = 0, first_chunk_frames = 0, window = 0, seed = 0;
    std::string enc, director;
    bool resumed = false;
    std::uint64_t next_seq = 0, epoch = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("re", &SessionOpened::re); v.must("session", &SessionOpened::session);
        v.must("token", &SessionOpened::token); v.must("model", &SessionOpened::model);
        v.must("width", &SessionOpened::width); v.must("height", &SessionOpened::height);
        v.must("fps", &SessionOpened::fps); v.must("tb", &SessionOpened::tb);
        v.must("chunk_frames", &SessionOpened::chunk_frames);
        v.must("first_chunk_frames", &SessionOpened::first_chunk_frames); v.must("window", &SessionOpened::window);
        v.must("seed", &SessionOpened::seed); v.must("enc", &SessionOpened::enc);
        v.may("director", &SessionOpened::director); v.may("resumed", &SessionOpened::resumed);
        v.may("next_seq", &SessionOpened::next_seq); v.may("epoch", &SessionOpened::epoch);
    }
};

/// A request was understood and will be done (`accepted`), waits for something (`queued`), was sent before
/// (`duplicate`), or an earlier one made way for a later one (`superseded`).
struct Ack {
    static constexpr const char* type = "ack";
    std::uint64_t re = 0;
    std::string session, status = "accepted";
    std::optional<Place> at;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("re", &Ack::re); v.may("session", &Ack::session); v.may("status", &Ack::status);
        v.may("at", &Ack::at);
    }
};

/// Request `re` shows from frame `seq` on. `caption` is what the model was given, `latency_ms` the time from the
/// request's arrival to now.
struct Applied {
    static constexpr const char* type = "applied";
    std::uint64_t re = 0;
    std::string session;
    std::uint64_t seq = 0, shot = 0, chunk = 0, epoch = 0;
    std::string caption;
    double latency_ms = 0.0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("re", &Applied::re); v.must("session", &Applied::session); v.must("seq", &Applied::seq);
        v.must("shot", &Applied::shot); v.must("chunk", &Applied::chunk); v.must("epoch", &Applied::epoch);
        v.must("caption", &Applied::caption); v.must("latency_ms", &Applied::latency_ms);
    }
};

/// A request will not be done.
struct Rejected {
    static constexpr const char* type = "rejected";
    std::uint64_t re = 0;
    std::string session, code, message;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("re", &Rejected::re); v.may("session", &Rejected::session); v.must("code", &Rejected::code);
        v.must("message", &Rejected::message);
    }
};

/// Before a shot's first frame `seq`. `flush`: drop queued frames of earlier epochs. `cause`: the request.
struct ShotBegin {
    static constexpr const char* type = "shot_begin";
    std::string session;
    std::uint64_t shot = 0, epoch = 0, seq = 0;
    std::string global_caption, caption, size;
    std::uint64_t cause = 0;
    std::string transition = "cut";
    bool flush = false;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("session", &ShotBegin::session); v.must("shot", &ShotBegin::shot);
        v.must("epoch", &ShotBegin::epoch); v.must("seq", &ShotBegin::seq);
        v.must("global_caption", &ShotBegin::global_caption); v.must("caption", &ShotBegin::caption);
        v.may("size", &ShotBegin::size); v.may("cause", &ShotBegin::cause);
        v.may("transition", &ShotBegin::transition); v.may("flush", &ShotBegin::flush);
    }
};

/// One picture; its bytes are the message's payload. Pixels are sRGB, full range, rows from the top, packed unless
/// `stride`. `index` counts in the chunk, `seq` over the session without holes, `pts` in units of 1/tb. `prompt` is
/// the request shown last. `ts` is the server's clock in us.
struct Frame {
    static constexpr const char* type = "frame";
    std::string session;
    std::uint64_t shot = 0, chunk = 0, index = 0, seq = 0, epoch = 0, pts = 0, prompt = 0;
    std::string enc = "rgb24";
    std::uint64_t w = 0, h = 0, stride = 0;
    bool key = true, end = false;
    std::uint64_t ts = 0;
    double gen_ms = 0.0;
    bool replay = false, speculative = false;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("session", &Frame::session); v.must("shot", &Frame::shot); v.must("chunk", &Frame::chunk);
        v.must("index", &Frame::index); v.must("seq", &Frame::seq); v.must("epoch", &Frame::epoch);
        v.must("pts", &Frame::pts); v.may("prompt", &Frame::prompt); v.may("enc", &Frame::enc);
        v.must("w", &Frame::w); v.must("h", &Frame::h); v.may("stride", &Frame::stride); v.may("key", &Frame::key);
        v.may("end", &Frame::end); v.may("ts", &Frame::ts); v.may("gen_ms", &Frame::gen_ms);
        v.may("replay", &Frame::replay); v.may("speculative", &Frame::speculative);
    }
};

/// After a shot's last frame.
struct ShotEnd {
    static constexpr const char* type = "shot_end";
    std::string session;
    std::uint64_t shot = 0, frames = 0;
    std::string reason;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("session", &ShotEnd::session); v.must("shot", &ShotEnd::shot); v.must("frames", &ShotEnd::frames);
        v.must("reason", &ShotEnd::reason);
    }
};

/// Frames `first` up to but not with `until` will not come.
struct Gap {
    static constexpr const char* type = "gap";
    std::string session;
    std::uint64_t first = 0, until = 0;
    std::string reason;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("session", &Gap::session); v.must("first", &Gap::first); v.must("until", &Gap::until);
        v.must("reason", &Gap::reason);
    }
};

/// The first chunk of option `key` lies ready: `frames` pictures.
struct ChoiceReady {
    static constexpr const char* type = "choice_ready";
    std::uint64_t re = 0;
    std::string session, key;
    std::uint64_t frames = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("re", &ChoiceReady::re); v.must("session", &ChoiceReady::session); v.must("key", &ChoiceReady::key);
        v.must("frames", &ChoiceReady::frames);
    }
};

struct SnapshotMade {
    static constexpr const char* type = "snapshot_made";
    std::uint64_t re = 0;
    std::string session, snap;
    std::uint64_t bytes = 0, shot = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("re", &SnapshotMade::re); v.must("session", &SnapshotMade::session);
        v.must("snap", &SnapshotMade::snap); v.must("bytes", &SnapshotMade::bytes);
        v.must("shot", &SnapshotMade::shot);
    }
};

struct Restored {
    static constexpr const char* type = "restored";
    std::uint64_t re = 0;
    std::string session, snap;
    std::uint64_t seq = 0, epoch = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("re", &Restored::re); v.must("session", &Restored::session); v.must("snap", &Restored::snap);
        v.must("seq", &Restored::seq); v.must("epoch", &Restored::epoch);
    }
};

/// The new session stands open on the same connection; a `session_opened` for it, with the same `re`, comes first.
/// Its frames are numbered from 0 and its first window is granted, as after `open_session`.
struct Forked {
    static constexpr const char* type = "forked";
    std::uint64_t re = 0;
    std::string session, fork;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("re", &Forked::re); v.must("session", &Forked::session); v.must("fork", &Forked::fork);
    }
};

/// Every second, to those who asked for it. `credit` and `queue` in frames.
struct Stats {
    static constexpr const char* type = "stats";
    std::string session;
    double fps = 0.0, chunk_ms_p50 = 0.0, chunk_ms_p95 = 0.0, lead_ms = 0.0;
    std::uint64_t credit = 0, queue = 0, late = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("session", &Stats::session); v.must("fps", &Stats::fps);
        v.must("chunk_ms_p50", &Stats::chunk_ms_p50); v.must("chunk_ms_p95", &Stats::chunk_ms_p95);
        v.must("lead_ms", &Stats::lead_ms); v.must("credit", &Stats::credit); v.must("queue", &Stats::queue);
        v.must("late", &Stats::late);
    }
};

/// The client's queue has run dry `since_ms` ago: for want of credit, because the model is too slow, or because no
/// shot was asked for (`story`).
struct Starved {
    static constexpr const char* type = "starved";
    std::string session;
    double since_ms = 0.0;
    std::string reason;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("session", &Starved::session); v.must("since_ms", &Starved::since_ms);
        v.must("reason", &Starved::reason);
    }
};

/// Something went wrong. `fatal`: the connection is of no further use.
struct Error {
    static constexpr const char* type = "error";
    std::string code, message;
    bool retryable = false;
    std::uint64_t retry_after_ms = 0, re = 0;
    std::string session;
    bool fatal = false;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("code", &Error::code); v.must("message", &Error::message); v.may("retryable", &Error::retryable);
        v.may("retry_after_ms", &Error::retry_after_ms); v.may("re", &Error::re); v.may("session", &Error::session);
        v.may("fatal", &Error::fatal);
    }
};

/// A film has ended. `code`: closed, expired, time_limit, shutting_down, or an error's; `reason` is for people.
struct SessionClosed {
    static constexpr const char* type = "session_closed";
    std::string session, reason, code = "closed";
    std::uint64_t frames = 0, shots = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("session", &SessionClosed::session); v.must("reason", &SessionClosed::reason);
        v.may("code", &SessionClosed::code); v.may("frames", &SessionClosed::frames);
        v.may("shots", &SessionClosed::shots);
    }
};

/// `t1` and `t2`: the server's clock in us when the ping came and when this left.
struct Pong {
    static constexpr const char* type = "pong";
    std::uint64_t t0 = 0, t1 = 0, t2 = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("t0", &Pong::t0); v.must("t1", &Pong::t1); v.must("t2", &Pong::t2);
    }
};

struct ServerGoodbye {
    static constexpr const char* type = "goodbye";
    std::string reason;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.may("reason", &ServerGoodbye::reason);
    }
};

using FromServer =
    std::variant<Welcome, ModelStatus, SessionOpened, Ack, Applied, Rejected, ShotBegin, Frame, ShotEnd, Gap,
                 ChoiceReady, SnapshotMade, Restored, Forked, Stats, Starved, Error, SessionClosed, Pong,
                 ServerGoodbye>;

}  // namespace shotstream::msg
