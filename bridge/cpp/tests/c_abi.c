/* What the C interface promises without a server: versions, refusals, null handles, smaller structs. 0: as promised. */
#include <stdio.h>
#include <string.h>

#include "shotstream.h"

#define CHECK(fact) \
    if (!(fact)) return printf("not so: %s\n", #fact) * 0 + 1

int main(void) {
    char why[64];
    double offset;
    sst_client* client;
    sst_session* session;
    sst_client_options options;
    sst_session_info info;
    sst_event event;

    CHECK(strcmp(sst_version(), "1.0.0") == 0 && sst_abi() == 1);
    CHECK(sst_client_poll(NULL) == SST_INVALID && sst_session_present(NULL, 0) == NULL);
    CHECK(sst_session_prompt(NULL, "x", NULL, NULL, NULL) == 0);
    sst_frame_release(NULL);
    sst_client_destroy(NULL);

    memset(&options, 0, sizeof options);
    options.size = sizeof options;
    options.endpoint = "nowhere";
    CHECK(sst_client_create(&options, why, sizeof why) == NULL && strstr(why, "nowhere") != NULL);
    options.endpoint = "tcp://127.0.0.1:9";
    options.server_key = "short";
    CHECK(sst_client_create(&options, why, sizeof why) == NULL && strncmp(why, "curve: server_key", 17) == 0);
    CHECK(sst_client_create(&options, NULL, 0) == NULL);

    options.size = offsetof(sst_client_options, server_key); /* an older caller: the key is not read */
    client = sst_client_create(&options, why, sizeof why);
    CHECK(client != NULL && sst_client_state(client) == SST_CONNECTING);
    CHECK(sst_client_clock_offset_us(client, &offset) == SST_NOT_YET);
    session = sst_session_open(client, NULL, NULL, NULL);
    CHECK(session != NULL);
    memset(&info, 0x55, sizeof info);
    info.size = offsetof(sst_session_info, width);
    CHECK(sst_session_info_get(session, &info) == SST_OK && info.state == SST_OPENING);
    CHECK(info.width == (uint64_t)0x5555555555555555u); /* beyond the caller's struct nothing is written */
    memset(&event, 0, sizeof event);
    event.size = sizeof event;
    event.kind = "k";
    CHECK(sst_session_event(session, &event, NULL, NULL) == 2 && sst_session_pause(session, NULL, NULL) == 3);
    CHECK(sst_client_poll(client) == 0);
    sst_client_destroy(client);
    return 0;
}
