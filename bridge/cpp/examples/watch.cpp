// Watches a film for a while: opens a session, sends an event and a prompt, shows frames when they are due, and says
// what came. Exit code 0: all frames came; 1: some are missing; 2: no film.
//
//     watch [ENDPOINT] [FRAMES] [SECONDS] [PPM_FILE] [SERVER_KEY]
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "shotstream.hpp"

namespace {

void write_ppm(const char* path, const shotstream::Frame& frame) {
    if (!frame.pixel_bytes()) return;
    std::FILE* file = std::fopen(path, "wb");
    if (!file) return;
    std::fprintf(file, "P6\n%d %d\n255\n", static_cast<int>(frame.header.w), static_cast<int>(frame.header.h));
    const unsigned red = frame.header.enc == "bgra32" ? 2 : 0;
    for (std::uint64_t y = 0; y < frame.header.h; ++y) {
        const std::uint8_t* pixel = frame.data() + y * frame.stride();
        for (std::uint64_t x = 0; x < frame.header.w; ++x, pixel += frame.pixel_bytes()) {
            const std::uint8_t rgb[] = {pixel[red], pixel[1], pixel[2 - red]};
            std::fwrite(rgb, 1, 3, file);
        }
    }
    std::fclose(file);
}

}  // namespace

int main(int argc, char** argv) {
    using shotstream::Client, shotstream::Session;
    shotstream::Options options;
    if (argc > 1) options.endpoint = argv[1];
    const std::uint64_t wanted = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 81;
    const double seconds = argc > 3 ? std::atof(argv[3]) : 30.0;
    const char* picture = argc > 4 ? argv[4] : "";
    if (argc > 5) options.curve.server_key = argv[5];

    try {
        Client client(options);
        client.on_problem = [](const shotstream::Problem& problem) {
            std::fprintf(stderr, "%s: %s\n", problem.code.c_str(), problem.message.c_str());
        };
        client.on_message = [](const shotstream::msg::FromServer& message) {
            if (const auto* applied = std::get_if<shotstream::msg::Applied>(&message))
                std::fprintf(stderr, "request %d shows from frame %d on\n", static_cast<int>(applied->re),
                             static_cast<int>(applied->seq));
        };

        shotstream::msg::OpenSession film;
        film.global_caption = "A story about a red cat. Setting: forest by day.";
        film.cast = {{"hero", "", "red cat", ""}};
        Session& session = client.open(film);

        shotstream::msg::Event event;
        event.kind = "Player.Wave";
        event.actor = "hero";
        event.action = "waves";
        event.params = {{"speed", 1.5}, {"lives", 9}, {"asleep", false}};
        int answers = 0;
        session.event(event, [&answers](const shotstream::Answer& answer) {
            ++answers;
            if (!answer.ok) std::fprintf(stderr, "event: %s: %s\n", answer.code.c_str(), answer.message.c_str());
        });
        session.prompt("Wide shot: the red cat walks right.", "next_chunk", 0, [&answers](const auto&) { ++answers; });

        const auto& counts = session.frames().counts();
        shotstream::Frame last;
        double longest_poll = 0;
        const double end = Client::now() + seconds;
        while (Client::now() < end && counts.presented + counts.dropped < wanted) {
            const double before = Client::now();
            client.poll();
            longest_poll = std::max(longest_poll, Client::now() - before);
            if (session.state() == Session::State::closed) break;
            if (auto frame = session.present(Client::now())) last = std::move(*frame);
            std::this_thread::sleep_for(std::chrono::milliseconds(4));
        }
        client.poll();  // the last credit

        if (*picture) write_ppm(picture, last);
        std::printf("{\"received\": %d, \"presented\": %d, \"dropped\": %d, \"gaps\": %d, \"holes\": %d, \"late\": %d, "
                    "\"answers\": %d, \"last_seq\": %d, \"last_bytes\": %d, \"longest_poll_ms\": %.3f, "
                    "\"round_trip_ms\": %.3f, \"error\": \"%s\", \"closed\": \"%s\"}\n",
                    static_cast<int>(counts.received), static_cast<int>(counts.presented),
                    static_cast<int>(counts.dropped), static_cast<int>(counts.gaps), static_cast<int>(counts.holes),
                    static_cast<int>(counts.late), answers, static_cast<int>(last.header.seq),
                    static_cast<int>(last.size()), longest_poll * 1000, client.round_trip_ms(), client.error().c_str(),
                    session.closed_because().c_str());
        if (counts.presented == 0) return 2;
        return counts.gaps + counts.holes > 0 ? 1 : 0;
    } catch (const std::runtime_error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
