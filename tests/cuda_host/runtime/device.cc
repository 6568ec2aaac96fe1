// Devices, their properties, and the error state of the calling OS thread.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "runtime.h"

static int configured_gpus() {
    const char *text = getenv("CUDA_HOST_GPUS");
    return text && *text ? atoi(text) : 1;
}

size_t configured_memory_bytes() {
    static const char *const text = getenv("CUDA_HOST_MEMORY_MB");
    static const size_t megabytes = text && *text ? strtoull(text, nullptr, 10) : 4096;
    return megabytes << 20;
}

// Numbers of the GPUs that CUDA_VISIBLE_DEVICES, where it counts, leaves of them, in its order: all
// when it is unset, and those before the first entry that is no GPU's number.
static std::vector<int> list_visible() {
    int gpus = std::min(configured_gpus(), largest_device_count);
    std::vector<int> visible;
    const char *text = getenv("CUDA_HOST_VISIBLE") ? getenv("CUDA_VISIBLE_DEVICES") : nullptr;
    for (int i = 0; !text && i < gpus; i++)
        visible.push_back(i);
    while (text && isdigit(static_cast<unsigned char>(*text))) {
        char *end;
        long gpu = strtol(text, &end, 10);
        if (gpu >= gpus || static_cast<int>(visible.size()) >= gpus)
            break;
        visible.push_back(static_cast<int>(gpu));
        text = *end == ',' ? end + 1 : nullptr;
    }
    return visible;
}

static const std::vector<int> &visible_gpus() {
    static const std::vector<int> visible = list_visible();
    return visible;
}

static cudaError_t driver_state() {
    static const int gpus = configured_gpus();
    if (gpus < 0)
        return cudaErrorInsufficientDriver;
    return visible_gpus().empty() ? cudaErrorNoDevice : cudaSuccess;
}

int device_count() {
    return static_cast<int>(visible_gpus().size());
}

static thread_local cudaError_t last_error;
static thread_local int device_of_thread;

cudaError_t note(cudaError_t error) {
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

int current_device() {
    return device_of_thread;
}

struct model {
    const char *name;
    int major, minor, processors;
    size_t shared_per_processor;
};
static const model models[] = {
    {"NVIDIA H200", 9, 0, 132, 228 * 1024},
    {"NVIDIA H100 80GB HBM3", 9, 0, 132, 228 * 1024},
    {"NVIDIA A100-SXM4-80GB", 8, 0, 108, 164 * 1024},
    {"Tesla T4", 7, 5, 40, 64 * 1024},
};

// The entry of CUDA_HOST_MODELS at this index; past its end the last one.
static std::string model_name(int device) {
    const char *text = getenv("CUDA_HOST_MODELS");
    std::string list = text && *text ? text : "A100";
    for (int i = 0;; i++) {
        size_t comma = list.find(',');
        if (i == device || comma == std::string::npos)
            return list.substr(0, comma);
        list.erase(0, comma + 1);
    }
}

static const model &model_of(int device) {
    std::string name = model_name(device);
    for (const model &each : models)
        if (strstr(each.name, name.c_str()))
            return each;
    cuda_host_fail("CUDA_HOST_MODELS: \"%s\" is none of H200, H100, A100, T4", name.c_str());
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = device_count();
    return note(driver_state());
}

static cudaError_t check_device(int device) {
    cudaError_t state = driver_state();
    if (state != cudaSuccess)
        return state;
    return device >= 0 && device < device_count() ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaSetDevice(int device) {
    cudaError_t error = check_device(device);
    if (error == cudaSuccess)
        device_of_thread = device;
    return note(error);
}

cudaError_t cudaGetDevice(int *device) {
    *device = device_of_thread;
    return note(driver_state());
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    cudaError_t error = check_device(device);
    if (error != cudaSuccess)
        return note(error);
    int gpu = visible_gpus()[device];
    const model &is = model_of(gpu);
    cudaDeviceProp p = {};
    snprintf(p.name, sizeof p.name, "%s", is.name);
    for (int i = 0; i < 16; i++)
        p.uuid.bytes[i] = static_cast<char>(i == 15 ? gpu : 17 * i + 1);
    p.totalGlobalMem = configured_memory_bytes();
    p.sharedMemPerBlock = default_shared_bytes;
    p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.warpSize = 32;
    p.maxThreadsPerBlock = largest_block;
    p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
    p.maxThreadsDim[2] = 64;
    p.maxGridSize[0] = 2147483647;
    p.maxGridSize[1] = p.maxGridSize[2] = 65535;
    p.major = is.major;
    p.minor = is.minor;
    p.multiProcessorCount = is.processors;
    p.concurrentKernels = 1;
    p.pciBusID = gpu + 1;
    p.asyncEngineCount = 3;
    p.unifiedAddressing = 1;
    p.l2CacheSize = 40 << 20;
    p.maxThreadsPerMultiProcessor = 2048;
    p.sharedMemPerMultiprocessor = is.shared_per_processor;
    p.sharedMemPerBlockOptin = largest_shared_bytes;
    p.reservedSharedMemPerBlock = 1024;
    *properties = p;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess)
        return error;
    const std::map<int, int> values = {
        {cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock},
        {cudaDevAttrMaxBlockDimX, p.maxThreadsDim[0]},
        {cudaDevAttrMaxBlockDimY, p.maxThreadsDim[1]},
        {cudaDevAttrMaxBlockDimZ, p.maxThreadsDim[2]},
        {cudaDevAttrMaxGridDimX, p.maxGridSize[0]},
        {cudaDevAttrMaxGridDimY, p.maxGridSize[1]},
        {cudaDevAttrMaxGridDimZ, p.maxGridSize[2]},
        {cudaDevAttrMaxSharedMemoryPerBlock, static_cast<int>(p.sharedMemPerBlock)},
        {cudaDevAttrWarpSize, p.warpSize},
        {cudaDevAttrMaxRegistersPerBlock, p.regsPerBlock},
        {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
        {cudaDevAttrL2CacheSize, p.l2CacheSize},
        {cudaDevAttrMaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor},
        {cudaDevAttrAsyncEngineCount, p.asyncEngineCount},
        {cudaDevAttrUnifiedAddressing, p.unifiedAddressing},
        {cudaDevAttrComputeCapabilityMajor, p.major},
        {cudaDevAttrComputeCapabilityMinor, p.minor},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor,
         static_cast<int>(p.sharedMemPerMultiprocessor)},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, static_cast<int>(p.sharedMemPerBlockOptin)},
    };
    auto found = values.find(attribute);
    if (found == values.end())
        return note(cudaErrorInvalidValue);
    *value = found->second;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int device) {
    cudaError_t error = check_device(device);
    if (error == cudaSuccess)
        snprintf(id, static_cast<size_t>(bytes), "0000:%02x:00.0", device + 1);
    return note(error);
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = driver_state() == cudaErrorInsufficientDriver ? 11000 : CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) {
    return last_error;
}

struct error_text {
    cudaError_t error;
    const char *name, *text;
};
static const error_text errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorCudartUnloading, "cudaErrorCudartUnloading", "driver shutting down"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer", "invalid device pointer"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidKernelImage, "cudaErrorInvalidKernelImage", "device kernel image is invalid"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorSymbolNotFound, "cudaErrorSymbolNotFound", "named symbol not found"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorLaunchTimeout, "cudaErrorLaunchTimeout", "the launch timed out and was terminated"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorIllegalInstruction, "cudaErrorIllegalInstruction",
     "an illegal instruction was encountered"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotPermitted, "cudaErrorNotPermitted", "operation not permitted"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorSystemDriverMismatch, "cudaErrorSystemDriverMismatch",
     "system has unsupported display driver / cuda driver combination"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

static const error_text *find_error(cudaError_t error) {
    for (const error_text &each : errors)
        if (each.error == error)
            return &each;
    return nullptr;
}

const char *cudaGetErrorName(cudaError_t error) {
    const error_text *found = find_error(error);
    return found ? found->name : "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
    const error_text *found = find_error(error);
    return found ? found->text : "unrecognized error code";
}
