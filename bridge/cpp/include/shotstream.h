/* ShotStream client, C interface of libshotstream: handles, plain functions, no exceptions. Callable from C89 with
 * <stdint.h>, and from any language with a foreign function interface.
 *
 * Structs that begin with `size`: zero them and set it to sizeof(the struct); newer libraries then know which fields
 * you have. Texts are UTF-8 and end with 0; NULL means "" or the default.
 * A client, its sessions and all their functions belong to one thread at a time; frames may be read and released
 * on any.
 * Callbacks come from within sst_client_poll; they may ask and open, but not destroy the client.
 */
#ifndef SHOTSTREAM_H
#define SHOTSTREAM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(SHOTSTREAM_BUILD)
#define SST_API __declspec(dllexport)
#elif defined(_WIN32)
#define SST_API __declspec(dllimport)
#elif defined(__GNUC__)
#define SST_API __attribute__((visibility("default")))
#else
#define SST_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sst_client sst_client;
typedef struct sst_session sst_session; /* owned by its client */
typedef struct sst_frame sst_frame;     /* owned by you: sst_frame_release */

/* What functions return that do not return a handle or a request's number. */
enum { SST_OK = 0, SST_INVALID = -1, SST_NOT_YET = -2, SST_FAILED = -3 };

/* "1.0.0", and the number that grows when this interface changes in a way that breaks callers. */
SST_API const char* sst_version(void);
SST_API int sst_abi(void);

/* --- client -------------------------------------------------------------------------------------------------- */
typedef struct sst_client_options {
    size_t size;
    const char* endpoint; /* tcp://127.0.0.1:5570 */
    const char* name;
    const char* token;
    const char* server_key; /* CURVE, 40 characters; NULL: not encrypted */
    const char* public_key; /* own keys; NULL: made */
    const char* secret_key;
    int stats; /* messages "stats" every second */
} sst_client_options;

enum { SST_CONNECTING = 0, SST_GREETING = 1, SST_READY = 2, SST_CLIENT_FAILED = 3 };

/* NULL on failure; `error` (may be NULL) then holds why. */
SST_API sst_client* sst_client_create(const sst_client_options* options, char* error, size_t error_size);
/* Says goodbye, frees sessions; takes 50 ms at most. Frames that you hold stay good. */
SST_API void sst_client_destroy(sst_client* client);
/* Call every frame: never blocks. Number of messages read, or SST_FAILED when the client has given up. */
SST_API int sst_client_poll(sst_client* client);
SST_API int sst_client_state(const sst_client* client);
/* The last problem, "code: text", or "". Good until the next call with this client. */
SST_API const char* sst_client_error(const sst_client* client);
/* The server's clock less sst_now(), in us. SST_NOT_YET before it is known. */
SST_API int sst_client_clock_offset_us(const sst_client* client, double* offset_us);
/* Seconds of a steady clock. */
SST_API double sst_now(void);

/* Every message of the server but frames: its name, and all of it as JSON. Both are good during the call. */
typedef void (*sst_message_fn)(void* user, const char* type, const char* json);
SST_API int sst_client_on_message(sst_client* client, sst_message_fn callback, void* user);

/* --- session ------------------------------------------------------------------------------------------------- */
typedef struct sst_answer {
    size_t size;
    uint64_t id; /* of the request */
    int ok;
    int retryable;
    uint64_t retry_after_ms;
    const char* code;    /* accepted, queued, duplicate, superseded, or an error's code */
    const char* message; /* for people */
} sst_answer;
/* The server's one answer to a request. */
typedef void (*sst_answer_fn)(void* user, const sst_answer* answer);

typedef struct sst_cast {
    const char* key;
    const char* name;
    const char* description;
    const char* short_name;
} sst_cast;

typedef struct sst_session_options {
    size_t size;
    const char* model;
    const char* global_caption;
    const char* style;
    const char* encoding; /* rgb24, rgba32, bgra32, jpeg, none */
    const char* director;
    const sst_cast* cast;
    size_t cast_count;
    int has_seed;
    uint64_t seed;
    uint64_t width, height, fps; /* 0: the server's */
    uint64_t window;             /* 0: 24 frames */
} sst_session_options;

enum { SST_OPENING = 0, SST_OPEN = 1, SST_RESUMING = 2, SST_CLOSED = 3 };

typedef struct sst_session_info {
    size_t size;
    int state;
    uint64_t width, height, seed, window, chunk_frames;
    double fps;
    /* frames */
    uint64_t received, presented, dropped, gaps, holes, late, queued;
    double lead_ms;
} sst_session_info;

/* `options` and `callback` may be NULL. NULL when out of memory or the client has failed. */
SST_API sst_session* sst_session_open(sst_client* client, const sst_session_options* options, sst_answer_fn callback,
                                      void* user);
SST_API int sst_session_info_get(const sst_session* session, sst_session_info* info);
/* The server's name for the session, and why it is closed ("code: text"). Good until the next poll. */
SST_API const char* sst_session_id(const sst_session* session);
SST_API const char* sst_session_closed_because(const sst_session* session);

/* Requests. All return their number (larger than 0), or 0 when the session is closed or too much is unanswered.
 * `callback` may be NULL: fire and forget. `at`: now, next_chunk, next_shot, auto (NULL). */
enum { SST_NOTHING = 0, SST_BOOL = 1, SST_INTEGER = 2, SST_NUMBER = 3, SST_TEXT = 4 };
typedef struct sst_param {
    const char* key;
    int type;
    int64_t integer; /* SST_BOOL and SST_INTEGER */
    double number;
    const char* text;
} sst_param;

typedef struct sst_event {
    size_t size;
    const char* kind;
    const char* actor;
    const char* action;
    const char* target;
    const char* at;
    const char* coalesce;
    const sst_param* params;
    size_t param_count;
    const char* const* tags;
    size_t tag_count;
} sst_event;

typedef struct sst_option {
    const char* key;
    const char* label;
    const char* caption;
    const char* kind;
    const char* actor;
    const char* action;
    const char* target;
} sst_option;

SST_API uint64_t sst_session_event(sst_session* session, const sst_event* event, sst_answer_fn callback, void* user);
SST_API uint64_t sst_session_prompt(sst_session* session, const char* text, const char* at, sst_answer_fn callback,
                                    void* user);
SST_API uint64_t sst_session_steer(sst_session* session, const char* text, sst_answer_fn callback, void* user);
SST_API uint64_t sst_session_cut(sst_session* session, const char* caption, int flush, sst_answer_fn callback,
                                 void* user);
SST_API uint64_t sst_session_scene(sst_session* session, const char* global_caption, const sst_cast* cast,
                                   size_t cast_count, int forget, sst_answer_fn callback, void* user);
SST_API uint64_t sst_session_choices(sst_session* session, const sst_option* options, size_t count,
                                     uint64_t deadline_ms, const char* default_key, sst_answer_fn callback, void* user);
SST_API uint64_t sst_session_commit(sst_session* session, uint64_t choices, const char* key, sst_answer_fn callback,
                                    void* user);
SST_API uint64_t sst_session_cancel(sst_session* session, uint64_t request, sst_answer_fn callback, void* user);
SST_API uint64_t sst_session_pause(sst_session* session, sst_answer_fn callback, void* user);
SST_API uint64_t sst_session_play(sst_session* session, sst_answer_fn callback, void* user);
SST_API uint64_t sst_session_snapshot(sst_session* session, const char* name, sst_answer_fn callback, void* user);
SST_API uint64_t sst_session_restore(sst_session* session, const char* snap, sst_answer_fn callback, void* user);
SST_API uint64_t sst_session_close(sst_session* session, sst_answer_fn callback, void* user);
/* Frees a session that is closed; its handle is then gone. Not from a callback. The rest go with the client. */
SST_API int sst_session_release(sst_client* client, sst_session* session);

/* --- frames -------------------------------------------------------------------------------------------------- */
typedef struct sst_frame_info {
    size_t size;
    const uint8_t* data; /* rows from the top, `stride` bytes apart; a JPEG file for jpeg; good until release */
    size_t data_size;
    const char* encoding;
    uint64_t width, height, stride; /* stride 0: not rows */
    uint64_t seq, pts, shot, chunk, index, epoch, prompt;
    int end_of_chunk, replay;
} sst_frame_info;

/* The frame to show now, once, by its pts, or NULL. `now`: seconds of any steady clock, or negative for sst_now(). */
SST_API sst_frame* sst_session_present(sst_session* session, double now);
/* The next frame whether due or not, or NULL: for recorders. */
SST_API sst_frame* sst_session_take(sst_session* session);
SST_API int sst_frame_info_get(const sst_frame* frame, sst_frame_info* info);
SST_API void sst_frame_release(sst_frame* frame);

#ifdef __cplusplus
}
#endif
#endif
