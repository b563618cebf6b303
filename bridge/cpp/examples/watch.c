/* The C++ example in C: watches a film for a while and says what came.
 * Exit code 0: all frames came; 1: some are missing; 2: no film.
 *
 *     watch_c [ENDPOINT] [FRAMES] [SECONDS] [PPM_FILE]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shotstream.h"

#ifdef _WIN32
#include <windows.h>
static void rest(void) { Sleep(4); }
#else
#include <sys/select.h>
static void rest(void) {
    struct timeval wait;
    wait.tv_sec = 0;
    wait.tv_usec = 4000;
    select(0, NULL, NULL, NULL, &wait);
}
#endif

static void on_answer(void* user, const sst_answer* answer) {
    ++*(int*)user;
    if (!answer->ok) fprintf(stderr, "request %d: %s: %s\n", (int)answer->id, answer->code, answer->message);
}

static void on_message(void* user, const char* type, const char* json) {
    (void)user;
    if (strcmp(type, "applied") == 0) fprintf(stderr, "%s\n", json);
}

static void write_ppm(const char* path, const sst_frame_info* frame) {
    uint64_t y;
    FILE* file;
    if (strcmp(frame->encoding, "rgb24") != 0) return;
    file = fopen(path, "wb");
    if (file == NULL) return;
    fprintf(file, "P6\n%d %d\n255\n", (int)frame->width, (int)frame->height);
    for (y = 0; y < frame->height; ++y) fwrite(frame->data + y * frame->stride, 3, (size_t)frame->width, file);
    fclose(file);
}

int main(int argc, char** argv) {
    char why[256];
    double end, before, longest_poll = 0, seconds = 30;
    uint64_t wanted = 81;
    int answers = 0;
    sst_client* client;
    sst_session* session;
    sst_frame* frame;
    sst_frame* last = NULL;
    sst_client_options options;
    sst_session_options film;
    sst_event event;
    sst_cast hero = {"hero", NULL, "red cat", NULL};
    sst_param params[2];
    sst_session_info info;
    sst_frame_info picture;

    memset(&options, 0, sizeof options);
    memset(&film, 0, sizeof film);
    memset(&event, 0, sizeof event);
    memset(params, 0, sizeof params);
    memset(&info, 0, sizeof info);
    memset(&picture, 0, sizeof picture);
    options.size = sizeof options;
    film.size = sizeof film;
    event.size = sizeof event;
    info.size = sizeof info;
    picture.size = sizeof picture;

    if (argc > 1) options.endpoint = argv[1];
    if (argc > 2) wanted = (uint64_t)atol(argv[2]);
    if (argc > 3) seconds = atof(argv[3]);
    client = sst_client_create(&options, why, sizeof why);
    if (client == NULL) {
        fprintf(stderr, "%s\n", why);
        return 2;
    }
    sst_client_on_message(client, on_message, NULL);

    film.global_caption = "A story about a red cat. Setting: forest by day.";
    film.cast = &hero;
    film.cast_count = 1;
    session = sst_session_open(client, &film, NULL, NULL);

    params[0].key = "speed";
    params[0].type = SST_NUMBER;
    params[0].number = 1.5;
    params[1].key = "mood";
    params[1].type = SST_TEXT;
    params[1].text = "calm";
    event.kind = "Player.Wave";
    event.actor = "hero";
    event.action = "waves";
    event.params = params;
    event.param_count = 2;
    sst_session_event(session, &event, on_answer, &answers);
    sst_session_prompt(session, "Wide shot: the red cat walks right.", "next_chunk", on_answer, &answers);

    end = sst_now() + seconds;
    while (sst_now() < end && info.presented + info.dropped < wanted) {
        int polled;
        before = sst_now();
        polled = sst_client_poll(client);
        if (sst_now() - before > longest_poll) longest_poll = sst_now() - before;
        if (polled == SST_FAILED || info.state == SST_CLOSED) break;
        frame = sst_session_present(session, -1);
        if (frame != NULL) {
            sst_frame_release(last); /* it was ours until now, as long as we liked */
            last = frame;
            sst_frame_info_get(last, &picture);
        }
        sst_session_info_get(session, &info);
        rest();
    }
    sst_client_poll(client); /* the last credit */

    if (argc > 4 && last != NULL) write_ppm(argv[4], &picture);
    printf("{\"received\": %d, \"presented\": %d, \"dropped\": %d, \"gaps\": %d, \"holes\": %d, \"late\": %d, "
           "\"answers\": %d, \"last_seq\": %d, \"last_bytes\": %d, \"longest_poll_ms\": %.3f, \"error\": \"%s\", "
           "\"closed\": \"%s\"}\n",
           (int)info.received, (int)info.presented, (int)info.dropped, (int)info.gaps, (int)info.holes, (int)info.late,
           answers, (int)picture.seq, (int)picture.data_size, longest_poll * 1000, sst_client_error(client),
           sst_session_closed_because(session));
    sst_frame_release(last);
    sst_client_destroy(client);
    if (info.presented == 0) return 2;
    return info.gaps + info.holes > 0 ? 1 : 0;
}
