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
#include <thread>
#include <unistd.h>
#include <vector>

#include "graph.h"
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
    recorder_ptr records;  // the recording that it takes part in
    std::vector<int> last; // its nodes that the next one comes after
};

struct CUevent_st {
    int device;
    bool timing;
    recording_ptr last;
    recorder_ptr records; // recorded while its stream was
    std::vector<int> after;
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

// An operation of a recording stream is written down.
cudaError_t write_down(cudaStream_t stream, const char *name, const operation_work &work) {
    if (stream->records->invalid || strncmp(name, "nccl", 4) == 0) { // not emulated in graphs
        if (work.release)
            work.release(work.state);
        return stream->records->invalid
                   ? note(cudaErrorStreamCaptureInvalidated)
                   : spoil_recording(stream, cudaErrorStreamCaptureUnsupported);
    }
    stream->last = {stream->records->add(name, work, stream->last)};
    return cudaSuccess;
}

// The stream goes on after what the event was recorded behind; it may join the recording so.
cudaError_t wait_for_recorded(cudaStream_t stream, cudaEvent_t event) {
    recorder *there = event->records.get();
    if (there->ended || stream == default_streams[stream->device])
        return note(cudaErrorCapturedEvent);
    if (stream->records && stream->records.get() != there) {
        there->invalid = true;
        return spoil_recording(stream, cudaErrorStreamCaptureMerge);
    }
    if (!stream->records) {
        stream->records = event->records;
        stream->last.clear();
    }
    if (cuda_host_fault("no-event-wait"))
        return cudaSuccess;
    stream->last.insert(stream->last.end(), event->after.begin(), event->after.end());
    return cudaSuccess;
}

// Looking at an event that was recorded into a recording.
cudaError_t refuse_recorded(cudaEvent_t event) {
    event->records->invalid = true;
    return note(cudaErrorCapturedEvent);
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

cudaError_t enqueue(cudaStream_t handle, const char *name, const operation_work &work) {
    cudaStream_t stream = resolve(handle);
    if (stream->records)
        return write_down(stream, name, work);
    if (stream == default_streams[stream->device] && check_unsafe_call() != cudaSuccess) {
        if (work.release)
            work.release(work.state);
        return note(cudaErrorStreamCaptureImplicit);
    }
    submit(stream, name, nullptr, work, nullptr);
    return cudaSuccess;
}

bool is_recording(cudaStream_t handle) {
    return handle && resolve(handle)->records;
}

cudaError_t spoil_recording(cudaStream_t stream, cudaError_t error) {
    resolve(stream)->records->invalid = true;
    return note(error);
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
    if (cudaError_t unsafe = check_unsafe_call())
        return unsafe;
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
    if (is_recording(stream))
        return spoil_recording(stream, cudaErrorStreamCaptureUnsupported);
    drain_stream(stream, "cudaStreamDestroy");
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    locked hold(emulation_lock);
    if (is_recording(stream))
        return spoil_recording(stream, cudaErrorStreamCaptureUnsupported);
    drain_stream(stream, "cudaStreamSynchronize");
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
    locked hold(emulation_lock);
    cudaStream_t stream = resolve(handle);
    if (stream->records)
        return spoil_recording(stream, cudaErrorStreamCaptureUnsupported);
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
    if (event->records)
        return wait_for_recorded(stream, event);
    if (stream->records && event->last)
        return spoil_recording(stream, cudaErrorStreamCaptureIsolation);
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
    *out =
        new CUevent_st{current_device(), !(flags & cudaEventDisableTiming), nullptr, nullptr, {}};
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
    event->records = stream->records;
    event->after = stream->last;
    event->last = nullptr;
    if (stream->records)
        return stream->records->invalid ? note(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
    event->last = std::make_shared<recording>();
    event->last->stream = stream;
    submit(stream, "cudaEventRecord", nullptr, {}, event->last);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    locked hold(emulation_lock);
    require_event(event);
    if (event->records)
        return refuse_recorded(event);
    recording_ptr last = event->last;
    if (last)
        run_until([&] { return last->done; }, last->stream, "cudaEventSynchronize");
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    locked hold(emulation_lock);
    require_event(event);
    if (event->records)
        return refuse_recorded(event);
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

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    locked hold(emulation_lock);
    if (!handle || resolve(handle)->records)
        return note(handle ? cudaErrorIllegalState : cudaErrorStreamCaptureUnsupported);
    handle->records = begin_recorder(handle, mode);
    handle->last.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *out) {
    locked hold(emulation_lock);
    recorder_ptr records = resolve(handle)->records;
    *out = !records           ? cudaStreamCaptureStatusNone
           : records->invalid ? cudaStreamCaptureStatusInvalidated
                              : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

// Work of another stream that the first one does not wait for would be left out of its order.
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *out) {
    locked hold(emulation_lock);
    *out = nullptr;
    recorder_ptr records = handle ? resolve(handle)->records : nullptr;
    if (!records)
        return note(cudaErrorIllegalState);
    if (records->origin != handle) {
        records->invalid = true;
        return note(cudaErrorStreamCaptureUnmatched);
    }
    if (records->mode != cudaStreamCaptureModeRelaxed &&
        records->thread != std::this_thread::get_id())
        return note(cudaErrorStreamCaptureWrongThread);
    std::vector<bool> joined = records->reached_from(handle->last);
    bool all = true;
    for (cudaStream_t each : streams) {
        if (each->records != records)
            continue;
        for (int node : each->last)
            all &= joined[static_cast<size_t>(node)];
        each->records = nullptr;
        each->last.clear();
    }
    end_recorder(records.get());
    if (records->invalid || !all)
        return note(all ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined);
    *out = make_graph(records);
    return cudaSuccess;
}
