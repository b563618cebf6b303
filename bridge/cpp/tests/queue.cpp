// The queue's promises, in made-up time: pace, skipping, drought, flush, gaps, credit. Exit code 0: all kept.
#include "shotstream/frame_queue.hpp"

#include <cstdio>
#include <cstdlib>

using shotstream::Frame, shotstream::FrameQueue;
namespace msg = shotstream::msg;

#define CHECK(fact)                                                      \
    do {                                                                 \
        if (!(fact)) {                                                   \
            std::printf("line %d, not so: %s\n", __LINE__, #fact);       \
            std::exit(1);                                                \
        }                                                                \
    } while (0)

namespace {

FrameQueue queue(std::uint64_t window = 24) {
    msg::SessionOpened opened;
    opened.fps = {16, 1};
    opened.tb = 90000;
    opened.chunk_frames = 12;
    opened.window = window;
    FrameQueue made;
    made.configure(opened);
    return made;
}

Frame frame(std::uint64_t seq, std::uint64_t epoch = 0) {
    msg::Frame header;
    header.seq = seq;
    header.epoch = epoch;
    header.pts = seq * 5625;
    header.enc = "none";
    return {header, {}};
}

void fill(FrameQueue& to, std::uint64_t first, std::uint64_t until, std::uint64_t epoch = 0) {
    for (; first < until; ++first) CHECK(to.push(frame(first, epoch)));
}

constexpr double tick = 1.0 / 16;

void frames_are_shown_once_when_they_are_due() {
    auto q = queue();
    fill(q, 0, 4);
    CHECK(q.present(10.0)->header.seq == 0);
    CHECK(!q.present(10.0 + 0.9 * tick));
    CHECK(q.present(10.0 + 1.1 * tick)->header.seq == 1);
    CHECK(!q.present(10.0 + 1.9 * tick));  // lateness does not add up
    CHECK(q.present(10.0 + 2.0 * tick)->header.seq == 2);
    CHECK(q.counts().late == 0 && q.counts().dropped == 0);
}

void a_slow_game_skips_frames_and_a_stalled_game_does_not() {
    auto q = queue();
    fill(q, 0, 20);
    q.present(0.0);
    CHECK(q.present(3.0 * tick)->header.seq == 3);
    CHECK(q.counts().dropped == 2 && q.played() == 4);
    CHECK(q.present(30.0)->header.seq == 4);  // after half a minute in a menu
    CHECK(!q.present(30.0 + 0.5 * tick));
    CHECK(q.counts().dropped == 2);
}

void a_drought_is_late_once_and_the_film_goes_on_at_its_pace() {
    auto q = queue();
    fill(q, 0, 1);
    q.present(0.0);
    CHECK(!q.present(0.5 * tick) && q.counts().late == 0);
    for (int i = 2; i < 9; ++i) CHECK(!q.present(i * tick));
    CHECK(q.counts().late == 1);
    fill(q, 1, 4);
    CHECK(q.present(10 * tick)->header.seq == 1);
    CHECK(!q.present(10.5 * tick));
    CHECK(q.present(11 * tick)->header.seq == 2);
    q.paused = true;
    q.present(12 * tick);
    CHECK(!q.present(99.0) && q.counts().late == 1);
}

void a_flush_drops_older_epochs_and_shows_the_next_at_once() {
    auto q = queue();
    fill(q, 0, 12);
    q.present(0.0);
    q.flush(1);
    CHECK(q.size() == 0 && q.counts().dropped == 11 && q.played() == 12);
    fill(q, 12, 14);  // was on its way
    CHECK(q.size() == 0 && q.counts().dropped == 13);
    fill(q, 14, 20, 1);
    CHECK(q.present(0.1 * tick)->header.seq == 14);
    CHECK(q.counts().holes == 0 && q.counts().late == 0);
}

void a_gap_counts_as_dropped_and_does_not_stop_the_picture() {
    auto q = queue();
    fill(q, 0, 2);
    msg::Gap gap;
    gap.first = 2;
    gap.until = 8;
    gap.reason = "late";
    q.gap(gap);
    q.gap(gap);  // said twice
    fill(q, 8, 10);
    CHECK(q.played() == 0);
    q.present(0.0);
    q.present(1.0 * tick);
    CHECK(q.played() == 8);
    CHECK(q.present(2.01 * tick)->header.seq == 8);
    CHECK(q.counts().dropped == 6 && q.counts().gaps == 6 && q.counts().holes == 0);
    CHECK(q.push(frame(4)) && q.size() == 1);  // sent again after a resume
    fill(q, 12, 13);
    CHECK(q.counts().holes == 2);
}

void credit_grows_in_half_chunks_and_never_starves_the_server() {
    for (const std::uint64_t window : {12, 18, 24, 36, 96}) {
        auto q = queue(window);
        std::uint64_t upto = window, sent = 0, messages = 0;
        double now = 0;
        for (int step = 0; step < 4000 && q.played() < 600; ++step, now += tick / 4) {
            const std::uint64_t chunk = sent == 0 ? 9 : 12;  // a server makes whole chunks only
            if (upto - sent >= chunk) {
                fill(q, sent, sent + chunk);
                sent += chunk;
            }
            q.present(now);
            if (const auto more = q.credit()) {
                CHECK(*more > upto && *more == q.played() + window);
                q.granted(upto = *more);
                ++messages;
            }
        }
        CHECK(q.played() >= 600 && q.counts().dropped == 0);
        CHECK(messages <= 600 / 6 * 2);
    }
}

void a_flood_is_bounded() {
    auto q = queue();
    int refused = 0;
    for (std::uint64_t seq = 0; seq < 10000; ++seq) refused += !q.push(frame(seq));
    CHECK(refused > 9000 && q.size() < 100);
}

}  // namespace

int main() {
    frames_are_shown_once_when_they_are_due();
    a_slow_game_skips_frames_and_a_stalled_game_does_not();
    a_drought_is_late_once_and_the_film_goes_on_at_its_pace();
    a_flush_drops_older_epochs_and_shows_the_next_at_once();
    a_gap_counts_as_dropped_and_does_not_stop_the_picture();
    credit_grows_in_half_chunks_and_never_starves_the_server();
    a_flood_is_bounded();
}
