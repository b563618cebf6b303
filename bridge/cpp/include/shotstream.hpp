// ShotStream client for C++17, header only: films made shot by shot by a server, steered and shown by a game.
//
//     shotstream::Client client({"tcp://127.0.0.1:5570"});
//     shotstream::Session& film = client.open({});
//     film.prompt("Wide shot: the red cat waves.");
//     ...each frame of the game:
//     client.poll();
//     if (auto frame = film.present(client.now())) upload(frame->data(), frame->size());
//
// Needs libzmq (link with -lzmq) and msgpack-c's headers.
#pragma once

#define SHOTSTREAM_VERSION "1.0.0"

#include "shotstream/client.hpp"
#include "shotstream/json.hpp"
