// The C interface over the C++ client. It decides nothing: texts and structs are translated, and no exception passes.
#define SHOTSTREAM_BUILD
#include "shotstream.h"

#include <cstring>
#include <unordered_map>

#include "shotstream.hpp"

using namespace shotstream;

struct sst_session {
    Session& session;
};

struct sst_client {
    explicit sst_client(Options options) : client(std::move(options)) {}

    Client client;
    std::unordered_map<Session*, std::unique_ptr<sst_session>> sessions;
};

struct sst_frame {
    Frame frame;
};

namespace {

std::string text(const char* from) { return from ? from : ""; }

/// The caller's struct as ours: fields that its version does not have are zero.
template <class T>
T sized(const T* from) {
    T full{};
    if (from) std::memcpy(&full, from, from->size < sizeof full ? from->size : sizeof full);
    return full;
}

/// Ours as the caller's: fields that its version does not have are left out.
template <class T>
int fill(T* to, T full) {
    if (to->size < sizeof to->size) return SST_INVALID;
    full.size = to->size;
    std::memcpy(to, &full, to->size < sizeof full ? to->size : sizeof full);
    return SST_OK;
}

/// Runs `work`; what it throws becomes `failure`.
template <class Result, class Work>
Result guarded(Result failure, Work&& work) noexcept {
    try {
        return work();
    } catch (...) {
        return failure;
    }
}

OnAnswer answer(sst_answer_fn callback, void* user) {
    if (!callback) return {};
    return [callback, user](const Answer& from) {
        sst_answer to{};
        to.size = sizeof to;
        to.id = from.id;
        to.ok = from.ok;
        to.retryable = from.retryable;
        to.retry_after_ms = from.retry_after_ms;
        to.code = from.code.c_str();
        to.message = from.message.c_str();
        callback(user, &to);
    };
}

template <class Fill>
std::uint64_t ask(sst_session* session, sst_answer_fn callback, void* user, Fill&& make) {
    if (!session) return 0;
    return guarded<std::uint64_t>(0, [&] { return session->session.request(make(), answer(callback, user)); });
}

std::vector<msg::Cast> cast(const sst_cast* from, std::size_t count) {
    std::vector<msg::Cast> to;
    for (std::size_t i = 0; from && i < count; ++i)
        to.push_back({text(from[i].key), text(from[i].name), text(from[i].description), text(from[i].short_name)});
    return to;
}

Scalar scalar(const sst_param& from) {
    switch (from.type) {
        case SST_BOOL: return from.integer != 0;
        case SST_INTEGER: return from.integer;
        case SST_NUMBER: return from.number;
        case SST_TEXT: return text(from.text);
        default: return nullptr;
    }
}

}  // namespace

extern "C" {

const char* sst_version(void) { return SHOTSTREAM_VERSION; }
int sst_abi(void) { return 1; }
double sst_now(void) { return Client::now(); }

// --- client ----------------------------------------------------------------------------------------------------------
sst_client* sst_client_create(const sst_client_options* given, char* error, size_t error_size) {
    const auto explain = [&](const char* why) {
        if (error && error_size) {
            std::strncpy(error, why, error_size - 1);
            error[error_size - 1] = '\0';
        }
    };
    try {
        const auto from = sized(given);
        Options options;
        if (from.endpoint) options.endpoint = from.endpoint;
        if (from.name) options.name = from.name;
        options.token = text(from.token);
        options.curve = {text(from.server_key), text(from.public_key), text(from.secret_key)};
        options.stats = from.stats != 0;
        return new sst_client(std::move(options));
    } catch (const std::exception& failure) {
        explain(failure.what());
    } catch (...) {
        explain("unknown failure");
    }
    return nullptr;
}

void sst_client_destroy(sst_client* client) { delete client; }

int sst_client_poll(sst_client* client) {
    if (!client) return SST_INVALID;
    return guarded<int>(SST_FAILED, [&] {
        const int count = client->client.poll();
        return client->client.state() == Client::State::failed ? SST_FAILED : count;
    });
}

int sst_client_state(const sst_client* client) {
    return client ? static_cast<int>(client->client.state()) : SST_INVALID;
}

const char* sst_client_error(const sst_client* client) { return client ? client->client.error().c_str() : "no client"; }

int sst_client_clock_offset_us(const sst_client* client, double* offset_us) {
    if (!client || !offset_us) return SST_INVALID;
    const auto offset = client->client.clock_offset_us();
    if (offset) *offset_us = *offset;
    return offset ? SST_OK : SST_NOT_YET;
}

int sst_client_on_message(sst_client* client, sst_message_fn callback, void* user) {
    if (!client) return SST_INVALID;
    return guarded<int>(SST_FAILED, [&] {
        client->client.on_message = nullptr;
        if (callback)
            client->client.on_message = [callback, user](const msg::FromServer& message) {
                const char* type = std::visit([](const auto& one) { return one.type; }, message);
                callback(user, type, wire::to_json(message).c_str());
            };
        return SST_OK;
    });
}

// --- session ---------------------------------------------------------------------------------------------------------
sst_session* sst_session_open(sst_client* client, const sst_session_options* given, sst_answer_fn callback,
                              void* user) {
    if (!client || client->client.state() == Client::State::failed) return nullptr;
    return guarded<sst_session*>(nullptr, [&] {
        const auto from = sized(given);
        msg::OpenSession wanted;
        wanted.model = text(from.model);
        wanted.global_caption = text(from.global_caption);
        wanted.style = text(from.style);
        wanted.director = text(from.director);
        wanted.cast = cast(from.cast, from.cast_count);
        if (from.encoding) wanted.enc = from.encoding;
        if (from.has_seed) wanted.seed = from.seed;
        if (from.window) wanted.window = from.window;
        wanted.width = from.width;
        wanted.height = from.height;
        wanted.fps = from.fps;
        Session& session = client->client.open(std::move(wanted), answer(callback, user));
        auto& handle = client->sessions[&session];
        handle.reset(new sst_session{session});
        return handle.get();
    });
}

int sst_session_info_get(const sst_session* session, sst_session_info* info) {
    if (!session || !info) return SST_INVALID;
    const Session& from = session->session;
    const auto& counts = from.frames().counts();
    sst_session_info to{};
    to.state = static_cast<int>(from.state());
    to.width = from.info().width;
    to.height = from.info().height;
    to.seed = from.info().seed;
    to.window = from.info().window;
    to.chunk_frames = from.info().chunk_frames;
    const Pair fps = from.info().fps;
    to.fps = fps[1] ? static_cast<double>(fps[0]) / static_cast<double>(fps[1]) : 0.0;
    to.received = counts.received;
    to.presented = counts.presented;
    to.dropped = counts.dropped;
    to.gaps = counts.gaps;
    to.holes = counts.holes;
    to.late = counts.late;
    to.queued = from.frames().size();
    to.lead_ms = from.frames().lead_s() * 1000;
    return fill(info, to);
}

const char* sst_session_id(const sst_session* session) { return session ? session->session.id().c_str() : ""; }
const char* sst_session_closed_because(const sst_session* session) {
    return session ? session->session.closed_because().c_str() : "";
}

uint64_t sst_session_event(sst_session* session, const sst_event* given, sst_answer_fn callback, void* user) {
    if (!given) return 0;
    return ask(session, callback, user, [&] {
        const auto from = sized(given);
        msg::Event event;
        event.kind = text(from.kind);
        event.actor = text(from.actor);
        event.action = text(from.action);
        event.target = text(from.target);
        event.coalesce = text(from.coalesce);
        if (from.at) event.at = from.at;
        for (std::size_t i = 0; from.params && i < from.param_count; ++i)
            event.params.emplace_back(text(from.params[i].key), scalar(from.params[i]));
        for (std::size_t i = 0; from.tags && i < from.tag_count; ++i) event.tags.push_back(text(from.tags[i]));
        return event;
    });
}

uint64_t sst_session_prompt(sst_session* session, const char* words, const char* at, sst_answer_fn callback,
                            void* user) {
    return ask(session, callback, user, [&] {
        msg::Prompt prompt;
        prompt.text = text(words);
        if (at) prompt.at = at;
        return prompt;
    });
}

uint64_t sst_session_steer(sst_session* session, const char* words, sst_answer_fn callback, void* user) {
    return ask(session, callback, user, [&] {
        msg::Steer steer;
        steer.text = text(words);
        return steer;
    });
}

uint64_t sst_session_cut(sst_session* session, const char* caption, int flush, sst_answer_fn callback, void* user) {
    return ask(session, callback, user, [&] {
        msg::Cut cut;
        cut.caption = text(caption);
        cut.flush = flush != 0;
        return cut;
    });
}

uint64_t sst_session_scene(sst_session* session, const char* global_caption, const sst_cast* people, size_t count,
                           int forget, sst_answer_fn callback, void* user) {
    return ask(session, callback, user, [&] {
        msg::Scene scene;
        scene.global_caption = text(global_caption);
        scene.cast = cast(people, count);
        scene.forget = forget != 0;
        return scene;
    });
}

uint64_t sst_session_choices(sst_session* session, const sst_option* options, size_t count, uint64_t deadline_ms,
                             const char* default_key, sst_answer_fn callback, void* user) {
    return ask(session, callback, user, [&] {
        msg::Choices choices;
        for (std::size_t i = 0; options && i < count; ++i) {
            const sst_option& from = options[i];
            choices.options.push_back({text(from.key), text(from.label), text(from.caption), text(from.kind),
                                       text(from.actor), text(from.action), text(from.target), {}});
        }
        choices.deadline_ms = deadline_ms;
        choices.default_key = text(default_key);
        return choices;
    });
}

uint64_t sst_session_commit(sst_session* session, uint64_t choices, const char* key, sst_answer_fn callback,
                            void* user) {
    return ask(session, callback, user, [&] {
        msg::Commit commit;
        commit.choices = choices;
        commit.key = text(key);
        return commit;
    });
}

uint64_t sst_session_cancel(sst_session* session, uint64_t request, sst_answer_fn callback, void* user) {
    return ask(session, callback, user, [&] {
        msg::Cancel cancel;
        cancel.ref = request;
        return cancel;
    });
}

uint64_t sst_session_pause(sst_session* session, sst_answer_fn callback, void* user) {
    return session ? guarded<std::uint64_t>(0, [&] { return session->session.pause(answer(callback, user)); }) : 0;
}
uint64_t sst_session_play(sst_session* session, sst_answer_fn callback, void* user) {
    return session ? guarded<std::uint64_t>(0, [&] { return session->session.play(answer(callback, user)); }) : 0;
}

uint64_t sst_session_snapshot(sst_session* session, const char* name, sst_answer_fn callback, void* user) {
    return ask(session, callback, user, [&] {
        msg::Snapshot snapshot;
        snapshot.name = text(name);
        return snapshot;
    });
}

uint64_t sst_session_restore(sst_session* session, const char* snap, sst_answer_fn callback, void* user) {
    return ask(session, callback, user, [&] {
        msg::Restore restore;
        restore.snap = text(snap);
        return restore;
    });
}

uint64_t sst_session_close(sst_session* session, sst_answer_fn callback, void* user) {
    return ask(session, callback, user, [] { return msg::CloseSession{}; });
}

int sst_session_release(sst_client* client, sst_session* session) {
    if (!client || !session || session->session.state() != Session::State::closed) return SST_INVALID;
    return guarded<int>(SST_FAILED, [&] {
        Session& gone = session->session;
        client->sessions.erase(&gone);
        client->client.erase(gone);
        return SST_OK;
    });
}

// --- frames ----------------------------------------------------------------------------------------------------------
static sst_frame* handed(std::optional<Frame> frame) { return frame ? new sst_frame{std::move(*frame)} : nullptr; }

sst_frame* sst_session_present(sst_session* session, double now) {
    if (!session) return nullptr;
    if (now < 0) now = Client::now();
    return guarded<sst_frame*>(nullptr, [&] { return handed(session->session.present(now)); });
}

sst_frame* sst_session_take(sst_session* session) {
    if (!session) return nullptr;
    return guarded<sst_frame*>(nullptr, [&] { return handed(session->session.take()); });
}

int sst_frame_info_get(const sst_frame* handle, sst_frame_info* info) {
    if (!handle || !info) return SST_INVALID;
    const Frame& from = handle->frame;
    sst_frame_info to{};
    to.data = from.data();
    to.data_size = from.size();
    to.encoding = from.header.enc.c_str();
    to.width = from.header.w;
    to.height = from.header.h;
    to.stride = from.stride();
    to.seq = from.header.seq;
    to.pts = from.header.pts;
    to.shot = from.header.shot;
    to.chunk = from.header.chunk;
    to.index = from.header.index;
    to.epoch = from.header.epoch;
    to.prompt = from.header.prompt;
    to.end_of_chunk = from.header.end;
    to.replay = from.header.replay;
    return fill(info, to);
}

void sst_frame_release(sst_frame* frame) { delete frame; }

}  // extern "C"
