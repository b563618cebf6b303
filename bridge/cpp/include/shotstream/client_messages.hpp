// What a client sends, field for field as in the protocol; `t` on the wire is each struct's `type`.
// Words with a fixed set of values (`at`, `enc`, ...) are strings, so that newer values pass through.
#pragma once

#include "wire.hpp"

namespace shotstream::msg {

/// What a client can read.
struct Accept {
    std::vector<std::string> enc;
    std::uint64_t max_payload = biggest;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.may("enc", &Accept::enc); v.may("max_payload", &Accept::max_payload);
    }
};

/// One member of the cast: `description` at the first appearance, `short` (default: the name) later.
struct Cast {
    std::string key, name, description, short_name;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("key", &Cast::key); v.may("name", &Cast::name); v.may("description", &Cast::description);
        v.may("short", &Cast::short_name);
    }
};

/// One way to go on: a caption, or an event's kind with its parts for the director.
struct Option {
    std::string key, label, caption, kind, actor, action, target;
    Params params;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("key", &Option::key); v.may("label", &Option::label); v.may("caption", &Option::caption);
        v.may("kind", &Option::kind); v.may("actor", &Option::actor); v.may("action", &Option::action);
        v.may("target", &Option::target); v.may("params", &Option::params);
    }
};

/// First message of a connection. `stats` asks for `stats` every second.
struct Hello {
    static constexpr const char* type = "hello";
    Pair proto{};
    std::string client, token;
    Accept accept;
    std::string role = "player";
    bool stats = false;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("proto", &Hello::proto); v.may("client", &Hello::client); v.may("token", &Hello::token);
        v.may("accept", &Hello::accept); v.may("role", &Hello::role); v.may("stats", &Hello::stats);
    }
};

/// A new film. 0 or "" for size, rate and model means the server's; other values must be among those in `welcome`.
/// `nonce`: the same again (of a client that lost its connection before the answer) gives the same session.
/// `director`: name of the plugin that words events. `seed` empty: the server draws one and says which.
struct OpenSession {
    static constexpr const char* type = "open_session";
    std::uint64_t id = 0;
    std::string model;
    std::uint64_t width = 0, height = 0, fps = 0;
    std::optional<std::uint64_t> seed;
    std::string style, global_caption;
    std::vector<Cast> cast;
    std::string enc = "rgb24";
    std::uint64_t quality = 85, window = 24;
    std::string policy = "pace";
    double resume_ttl_s = 60.0;
    std::string director, nonce;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &OpenSession::id); v.may("model", &OpenSession::model); v.may("width", &OpenSession::width);
        v.may("height", &OpenSession::height); v.may("fps", &OpenSession::fps); v.may("seed", &OpenSession::seed);
        v.may("style", &OpenSession::style); v.may("global_caption", &OpenSession::global_caption);
        v.may("cast", &OpenSession::cast); v.may("enc", &OpenSession::enc); v.may("quality", &OpenSession::quality);
        v.may("window", &OpenSession::window); v.may("policy", &OpenSession::policy);
        v.may("resume_ttl_s", &OpenSession::resume_ttl_s); v.may("director", &OpenSession::director);
        v.may("nonce", &OpenSession::nonce);
    }
};

/// Something happened in the game; the director words it. `ts` is the client's clock in ms.
struct Event {
    static constexpr const char* type = "event";
    std::uint64_t id = 0;
    std::string session, kind, actor, action, target;
    Params params;
    std::vector<std::string> tags;
    std::string at = "auto";
    double ts = 0.0;
    std::string coalesce;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Event::id); v.must("session", &Event::session); v.must("kind", &Event::kind);
        v.may("actor", &Event::actor); v.may("action", &Event::action); v.may("target", &Event::target);
        v.may("params", &Event::params); v.may("tags", &Event::tags); v.may("at", &Event::at);
        v.may("ts", &Event::ts); v.may("coalesce", &Event::coalesce);
    }
};

/// A shot caption, word for word. `chunks` 0: the model's usual length.
struct Prompt {
    static constexpr const char* type = "prompt";
    std::uint64_t id = 0;
    std::string session, text, at = "auto";
    std::uint64_t chunks = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Prompt::id); v.must("session", &Prompt::session); v.must("text", &Prompt::text);
        v.may("at", &Prompt::at); v.may("chunks", &Prompt::chunks);
    }
};

/// A new caption for the running shot, without a cut, from the next chunk on.
struct Steer {
    static constexpr const char* type = "steer";
    std::uint64_t id = 0;
    std::string session, text;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Steer::id); v.must("session", &Steer::session); v.must("text", &Steer::text);
    }
};

/// Begin a new shot behind the chunk in the making, or at once with `flush`. Without a caption the director finds one
/// for `size` and `subject`.
struct Cut {
    static constexpr const char* type = "cut";
    std::uint64_t id = 0;
    std::string session, caption, size, subject;
    bool flush = false;
    std::uint64_t chunks = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Cut::id); v.must("session", &Cut::session); v.may("caption", &Cut::caption);
        v.may("size", &Cut::size); v.may("subject", &Cut::subject); v.may("flush", &Cut::flush);
        v.may("chunks", &Cut::chunks);
    }
};

/// New circumstances from the next shot on. `forget`: earlier shots are not remembered there.
struct Scene {
    static constexpr const char* type = "scene";
    std::uint64_t id = 0;
    std::string session, global_caption;
    std::vector<Cast> cast;
    std::string style, place, time;
    bool forget = false;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Scene::id); v.must("session", &Scene::session);
        v.may("global_caption", &Scene::global_caption); v.may("cast", &Scene::cast); v.may("style", &Scene::style);
        v.may("place", &Scene::place); v.may("time", &Scene::time); v.may("forget", &Scene::forget);
    }
};

/// Ways to go on; the first chunk of each is made ahead. `default` is committed after `deadline_ms`, if both are
/// given.
struct Choices {
    static constexpr const char* type = "choices";
    std::uint64_t id = 0;
    std::string session;
    std::vector<Option> options;
    std::uint64_t deadline_ms = 0;
    std::string default_key;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Choices::id); v.must("session", &Choices::session); v.must("options", &Choices::options);
        v.may("deadline_ms", &Choices::deadline_ms); v.may("default", &Choices::default_key);
    }
};

/// Take option `key` of the choices announced under the request id `choices`.
struct Commit {
    static constexpr const char* type = "commit";
    std::uint64_t id = 0;
    std::string session;
    std::uint64_t choices = 0;
    std::string key;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Commit::id); v.must("session", &Commit::session); v.must("choices", &Commit::choices);
        v.must("key", &Commit::key);
    }
};

/// Take back request `ref` unless it has been applied.
struct Cancel {
    static constexpr const char* type = "cancel";
    std::uint64_t id = 0;
    std::string session;
    std::uint64_t ref = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Cancel::id); v.must("session", &Cancel::session); v.must("ref", &Cancel::ref);
    }
};

/// Make nothing until `play`. What was sent stays sent.
struct Pause {
    static constexpr const char* type = "pause";
    std::uint64_t id = 0;
    std::string session;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Pause::id); v.must("session", &Pause::session);
    }
};

/// Go on after `pause`.
struct Play {
    static constexpr const char* type = "play";
    std::uint64_t id = 0;
    std::string session;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Play::id); v.must("session", &Play::session);
    }
};

/// Keep the film as it is at the coming shot boundary (at once between shots).
struct Snapshot {
    static constexpr const char* type = "snapshot";
    std::uint64_t id = 0;
    std::string session, name;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Snapshot::id); v.must("session", &Snapshot::session); v.may("name", &Snapshot::name);
    }
};

/// Go back to a snapshot of this session; the running shot ends.
struct Restore {
    static constexpr const char* type = "restore";
    std::uint64_t id = 0;
    std::string session, snap;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Restore::id); v.must("session", &Restore::session); v.must("snap", &Restore::snap);
    }
};

/// A new session that goes on from a snapshot, or from the last shot boundary.
struct Fork {
    static constexpr const char* type = "fork";
    std::uint64_t id = 0;
    std::string session, snap, name;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Fork::id); v.must("session", &Fork::session); v.may("snap", &Fork::snap);
        v.may("name", &Fork::name);
    }
};

/// Frames below `upto` may be sent; it only grows. Granted when frames are presented. `played` is the number of
/// frames presented or dropped so far, `lead_ms` what is queued, `late` how often nothing was there to show.
struct Credit {
    static constexpr const char* type = "credit";
    std::string session;
    std::uint64_t upto = 0, played = 0;
    double lead_ms = 0.0;
    std::uint64_t late = 0, dropped = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("session", &Credit::session); v.must("upto", &Credit::upto); v.may("played", &Credit::played);
        v.may("lead_ms", &Credit::lead_ms); v.may("late", &Credit::late); v.may("dropped", &Credit::dropped);
    }
};

/// Take a session over on this connection; frames from `next_seq` on are sent again as far as they are kept.
struct Resume {
    static constexpr const char* type = "resume";
    std::uint64_t id = 0;
    std::string session, token;
    std::uint64_t next_seq = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &Resume::id); v.must("session", &Resume::session); v.must("token", &Resume::token);
        v.may("next_seq", &Resume::next_seq);
    }
};

/// End the film and free what it holds.
struct CloseSession {
    static constexpr const char* type = "close_session";
    std::uint64_t id = 0;
    std::string session;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("id", &CloseSession::id); v.must("session", &CloseSession::session);
    }
};

/// Keeps the lease and measures the clock: `t0` is the client's time in us, any origin.
struct Ping {
    static constexpr const char* type = "ping";
    std::uint64_t t0 = 0;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.must("t0", &Ping::t0);
    }
};

/// The client leaves; its sessions are closed at once.
struct Goodbye {
    static constexpr const char* type = "goodbye";
    std::string reason;

    template <class Visitor>
    static void fields(Visitor&& v) {
        v.may("reason", &Goodbye::reason);
    }
};

using FromClient =
    std::variant<Hello, OpenSession, Event, Prompt, Steer, Cut, Scene, Choices, Commit, Cancel, Pause, Play,
                 Snapshot, Restore, Fork, Credit, Resume, CloseSession, Ping, Goodbye>;

}  // namespace shotstream::msg
