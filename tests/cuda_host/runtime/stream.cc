// Streams that hold their work back.
//
// Queued operations run when something waits for them, and then in an order
// that CUDA allows and a GPU rarely shows: either only what the awaited one
// needs, or whatever a random choice among the streams brings first, sometimes
// with more after it. Now and then a stream works at once instead.
#include <algorithm>
#include <cstring>
#include <ctime>
#include <deque>
#include <memory>
#include <unistd.h>
#include <vector>

#include "runtime.h"

namespace {

// One recording of an event. Waits refer to the recording, not to the event.
struct recording {
    cudaStream_t stream; // that will make it
    bool done;
    bool observed; // the host has seen that it is done: no query may deny it any
                   // more
    int denials;
    timespec time;
};
using recording_ptr = std::shared_ptr<recording>;

struct operation {
    const char *name;
    recording_ptr wait; // must be done before
    operation_work work;
    recording_ptr records;
};

} // namespace

struct CUstream_st {
    int device;
    bool blocking; // ordered with the default stream
    bool eager;
    bool pending; // its first operation was polled in vain in this round
    std::deque<operation> queue;
};

struct CUevent_st {
    int device;
    bool timing;
    recording_ptr last;
};

namespace {

// Never destroyed: streams may be used until the process ends.
auto &streams = *new std::vector<cudaStream_t>();
auto &events = *new std::vector<cudaEvent_t>();
auto &recordings = *new std::vector<recording_ptr>(); // done, not observed
cudaStream_t default_streams[largest_device_count];

cudaStream_t add_stream(int device, bool blocking) {
    auto *made = new CUstream_st();
    made->device = device;
    made->blocking = blocking;
    streams.push_back(made);
    return made;
}

// The stream of a handle; NULL is the current device's default stream.
cudaStream_t resolve(cudaStream_t handle) {
    if (handle) {
        if (std::find(streams.begin(), streams.end(), handle) == streams.end())
            cuda_host_fail("a stream is used that does not exist (any more)");
        return handle;
    }
    cudaStream_t &stream = default_streams[current_device()];
    if (!stream)
        stream = add_stream(current_device(), true);
    return stream;
}

void require_event(cudaEvent_t event) {
    if (std::find(events.begin(), events.end(), event) == events.end())
        cuda_host_fail("an event is used that does not exist (any more)");
}

bool can_try(cudaStream_t stream) {
    if (stream->queue.empty() || stream->pending)
        return false;
    const recording_ptr &wait = stream->queue.front().wait;
    return !wait || wait->done;
}

// Runs the first operation of a stream that can_try().
void advance(cudaStream_t stream) {
    operation &first = stream->queue.front();
    if (first.work.poll && !first.work.poll(first.work.state)) {
        stream->pending = true;
        return;
    }
    operation finished = std::move(first);
    stream->queue.pop_front();
    if (finished.work.release)
        finished.work.release(finished.work.state);
    if (finished.records) {
        finished.records->done = true;
        clock_gettime(CLOCK_MONOTONIC, &finished.records->time);
        recordings.push_back(finished.records);
    }
}

cudaStream_t choose_any() {
    cudaStream_t chosen = nullptr;
    uint32_t n = 0;
    for (cudaStream_t each : streams)
        if (can_try(each) && cuda_host_random(++n) == 0)
            chosen = each;
    return chosen;
}

// The stream that has to go on for `target` to do so: itself, or whose event it
// waits for.
cudaStream_t choose_for(cudaStream_t target) {
    while (!target->queue.empty() && !can_try(target)) {
        const recording_ptr &wait = target->queue.front().wait;
        if (!wait || wait->done)
            return choose_any(); // it was polled in vain: let others go on
        target = wait->stream;
    }
    return target->queue.empty() ? choose_any() : target;
}

// All streams stand still; fine when one of them only waits for something
// outside.
void pause_or_fail(const char *why) {
    bool any = false;
    for (cudaStream_t each : streams) {
        any |= each->pending;
        each->pending = false;
    }
    if (!any)
        cuda_host_fail("deadlock: %s waits for work that no stream can do", why);
    end_device_access();
    emulation_lock.unlock();
    usleep(50);
    emulation_lock.lock();
    begin_device_access();
}

void run_more(uint32_t operations) {
    while (operations-- > 0) {
        cudaStream_t chosen = choose_any();
        if (!chosen)
            break;
        advance(chosen);
    }
    for (cudaStream_t each : streams)
        each->pending = false;
}

// What is done now may have been noticed, in one way or another, by a host that
// has waited.
void observe_all() {
    for (recording_ptr &each : recordings)
        each->observed = true;
    recordings.clear();
}

// Runs work until `reached`. `target`: the stream it depends on, NULL for
// several.
template <typename Reached> void run_until(Reached reached, cudaStream_t target, const char *why) {
    bool directed = target && cuda_host_random(2);
    begin_device_access();
    while (!reached()) {
        cudaStream_t chosen = directed ? choose_for(target) : choose_any();
        if (chosen)
            advance(chosen);
        else
            pause_or_fail(why);
    }
    run_more(!directed && cuda_host_random(4) == 0 ? cuda_host_random(8) : 0);
    end_device_access();
    observe_all();
}

void push(cudaStream_t stream, const char *name, recording_ptr wait, const operation_work &work,
          recording_ptr records) {
    stream->queue.push_back({name, std::move(wait), work, std::move(records)});
}

// `later` goes on after what `earlier` has queued now.
void order_after(cudaStream_t earlier, cudaStream_t later) {
    if (earlier == later || earlier->queue.empty())
        return;
    auto mark = std::make_shared<recording>();
    mark->stream = earlier;
    push(earlier, "order", nullptr, {}, mark);
    push(later, "order", mark, {}, nullptr);
}

// The default stream and blocking streams run one operation at a time.
void order_with_default(cudaStream_t stream) {
    cudaStream_t main = default_streams[stream->device];
    if (!main || !stream->blocking)
        return;
    if (stream != main)
        return order_after(main, stream);
    for (cudaStream_t each : streams)
        if (each->device == stream->device && each->blocking)
            order_after(each, stream);
}

void maybe_run_now(cudaStream_t stream) {
    if (cuda_host_random(24) == 0)
        stream->eager = cuda_host_random(4) == 0;
    if (!stream->eager || !can_try(stream))
        return;
    begin_device_access();
    while (can_try(stream))
        advance(stream);
    stream->pending = false;
    end_device_access();
}

void submit(cudaStream_t stream, const char *name, recording_ptr wait, const operation_work &work,
            recording_ptr records) {
    order_with_default(stream);
    push(stream, name, std::move(wait), work, std::move(records));
    maybe_run_now(stream);
}

// Moves things along a little, as time would.
void let_time_pass() {
    begin_device_access();
    run_more(cuda_host_random(3));
    end_device_access();
}

cudaError_t query(recording *last) {
    if (last->done && !last->observed && last->denials++ < 3 && cuda_host_random(2))
        return cudaErrorNotReady;
    if (!last->done)
        return cudaErrorNotReady;
    observe_all();
    last->observed = true;
    return cudaSuccess;
}

} // namespace

cudaError_t enqueue(cudaStream_t stream, const char *name, const operation_work &work) {
    submit(resolve(stream), name, nullptr, work, nullptr);
    return cudaSuccess;
}

void drain_stream(cudaStream_t handle, const char *why) {
    cudaStream_t stream = resolve(handle);
    auto last = std::make_shared<recording>();
    last->stream = stream;
    push(stream, why, nullptr, {}, last);
    run_until([&] { return last->done; }, stream, why);
}

void drain_device(int device, const char *why) {
    auto idle = [device](cudaStream_t each) {
        return each->queue.empty() || (device >= 0 && each->device != device);
    };
    run_until([&] { return std::all_of(streams.begin(), streams.end(), idle); }, nullptr, why);
}

int cuda_host_stream_device(cudaStream_t stream) {
    locked hold(emulation_lock);
    return stream ? resolve(stream)->device : current_device();
}

cudaError_t cuda_host_enqueue(cudaStream_t stream, const char *name, int (*poll)(void *state),
                              void *state, void (*release)(void *state)) {
    locked hold(emulation_lock);
    return enqueue(stream, name, {poll, state, release});
}

cudaError_t cudaDeviceSynchronize(void) {
    locked hold(emulation_lock);
    drain_device(current_device(), "cudaDeviceSynchronize");
    return cudaSuccess;
}

cudaError_t cudaDeviceReset(void) {
    return cudaDeviceSynchronize();
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int) {
    locked hold(emulation_lock);
    if (device_count() == 0)
        return note(cudaErrorNoDevice);
    if (flags & ~static_cast<unsigned>(cudaStreamNonBlocking))
        return note(cudaErrorInvalidValue);
    *out = add_stream(current_device(), !(flags & cudaStreamNonBlocking));
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
    return cudaStreamCreateWithPriority(out, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *out) {
    return cudaStreamCreateWithPriority(out, cudaStreamDefault, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    locked hold(emulation_lock);
    if (!stream)
        return note(cudaErrorInvalidResourceHandle);
    drain_stream(stream, "cudaStreamDestroy");
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    locked hold(emulation_lock);
    drain_stream(stream, "cudaStreamSynchronize");
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
    locked hold(emulation_lock);
    cudaStream_t stream = resolve(handle);
    let_time_pass();
    if (!stream->queue.empty()) // not an error to be remembered
        return cudaErrorNotReady;
    observe_all();
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
    locked hold(emulation_lock);
    require_event(event);
    cudaStream_t stream = resolve(handle);
    // Nothing recorded, nothing to wait for. The recording may be done by now;
    // the operation still takes its place in the stream.
    if (event->last && !cuda_host_fault("no-event-wait"))
        submit(stream, "cudaStreamWaitEvent", event->last, {}, nullptr);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
    locked hold(emulation_lock);
    if (device_count() == 0)
        return note(cudaErrorNoDevice);
    *out = new CUevent_st{current_device(), !(flags & cudaEventDisableTiming), nullptr};
    events.push_back(*out);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out) {
    return cudaEventCreateWithFlags(out, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    locked hold(emulation_lock);
    require_event(event);
    events.erase(std::find(events.begin(), events.end(), event));
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
    locked hold(emulation_lock);
    require_event(event);
    cudaStream_t stream = resolve(handle);
    if (event->device != stream->device)
        return note(cudaErrorInvalidResourceHandle);
    event->last = std::make_shared<recording>();
    event->last->stream = stream;
    submit(stream, "cudaEventRecord", nullptr, {}, event->last);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    locked hold(emulation_lock);
    require_event(event);
    recording_ptr last = event->last;
    if (last)
        run_until([&] { return last->done; }, last->stream, "cudaEventSynchronize");
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    locked hold(emulation_lock);
    require_event(event);
    if (!event->last || event->last->observed)
        return cudaSuccess;
    let_time_pass();
    return query(event->last.get()); // cudaErrorNotReady is not remembered
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) {
    locked hold(emulation_lock);
    require_event(start);
    require_event(end);
    if (!start->timing || !end->timing || !start->last || !end->last)
        return note(cudaErrorInvalidResourceHandle);
    if (!start->last->done || !end->last->done)
        return cudaErrorNotReady;
    const timespec &a = start->last->time, &b = end->last->time;
    *ms = static_cast<float>(1e3 * static_cast<double>(b.tv_sec - a.tv_sec) +
                             1e-6 * static_cast<double>(b.tv_nsec - a.tv_nsec));
    return cudaSuccess;
}
