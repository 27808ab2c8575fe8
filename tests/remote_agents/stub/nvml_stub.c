/* A libnvidia-ml.so.1 of GPUs that do not exist, for the agent in a process of its own: LD_LIBRARY_PATH finds it.
 *
 *   STUB_GPUS     how many GPUs; 2
 *   STUB_PIDS     processes that use them, "12,34": the first on GPU 0, the next on GPU 1, and round again
 *   STUB_CALL_US  how long every call about a GPU sleeps, as a driver would; 0
 *   STUB_FAULT    slow: the utilisation takes 40 ms      lost: the last GPU is away from 1.0 to 1.5 s after nvmlInit
 *                 xid: XID 31 of GPU 0 after 0.5 s       storm: XID 31 of GPU 0 every millisecond
 *                 mismatch: nvmlInit fails               hang: the utilisation does not return from 1 s on
 *
 * All values are functions of CLOCK_MONOTONIC. A GPU's activity swings between 0 and 1 (`activity`); power is 100 W and
 * up to 500 W more, and energy and the GPM metrics are its exact integral (`work`), so that differences can be checked.
 * Types and numbers are those of nvml.h; only what the agent calls is here.
 */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10, GPU_IS_LOST = 15, LIB_RM_VERSION_MISMATCH = 18
};
enum { UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3 };

#define MAX_GPUS 64
#define MAX_PIDS 256
#define PERIOD_S 4.0
#define IDLE_W 100.0
#define BUSY_W 500.0
#define MEMORY_B (80ULL << 30)
#define RESERVED_B (900ULL << 20)
#define SAMPLE_US 166667ULL
#define BUFFERED 100

typedef union { double d; unsigned int ui; unsigned long ul; unsigned long long ull; long long sll; } value_t;
typedef struct { unsigned int field, scope; long long stamp_us, latency_us; unsigned int type, code; value_t value; } field_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned long long stamp_us; value_t value; } sample_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process_t;
typedef struct { void *device; unsigned long long type, data; unsigned int gpu_instance, compute_instance; } event_t;
typedef struct { unsigned int metric, code; double value; const char *names[3]; } metric_t;
typedef struct { int gpu; double t_s; } gpm_sample_t;
typedef struct { unsigned int version, count; gpm_sample_t *sample1, *sample2; metric_t metrics[]; } gpm_request_t;
typedef struct { unsigned int version, is_supported; } gpm_support_t;
typedef struct { char legacy[16]; unsigned int domain, bus, device, device_id, subsystem_id; char bus_id[32]; } pci_t;

static int gpus, pid_count;
static unsigned int pids[MAX_PIDS];
static long call_us;
static const char *fault = "";
static double init_s = -1;
static _Atomic unsigned long told;
static char devices[MAX_GPUS];  /* a handle is the address of one */

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static unsigned long long time_of_day_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1000000ULL + now.tv_nsec / 1000;
}

static void pause_s(double seconds)
{
    struct timespec time = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

static int has_fault(const char *name) { return strcmp(fault, name) == 0; }

static int number(void *device) { return (int)((char *)device - devices); }

static int ask(void *device)
{
    if (init_s < 0)
        return UNINITIALIZED;
    if (number(device) < 0 || number(device) >= gpus)
        return INVALID_ARGUMENT;
    if (call_us)
        pause_s(call_us / 1e6);
    double age_s = now_s() - init_s;
    if (has_fault("lost") && number(device) == gpus - 1 && age_s > 1.0 && age_s < 1.5)
        return GPU_IS_LOST;
    return OK;
}

#define ASK(device) do { int code = ask(device); if (code) return code; } while (0)

/* 0 to 1, and its integral from t = 0; every GPU is a little behind the one before. */
static double activity(int gpu, double t_s) { return 0.5 - 0.5 * cos(2 * M_PI * (t_s / PERIOD_S - gpu / 16.0)); }

static double work(int gpu, double t_s)
{
    double phase = 2 * M_PI * (t_s / PERIOD_S - gpu / 16.0), start = -2 * M_PI * gpu / 16.0;
    return 0.5 * t_s - 0.5 * PERIOD_S / (2 * M_PI) * (sin(phase) - sin(start));
}

static double power_w(int gpu, double t_s) { return IDLE_W + BUSY_W * activity(gpu, t_s); }

static double energy_j(int gpu, double t_s) { return IDLE_W * t_s + BUSY_W * work(gpu, t_s); }

static unsigned long long used_b(int gpu)
{
    return (20ULL << 30) + (unsigned long long)((30ULL << 30) * activity(gpu, now_s()));
}

int nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    const char *text = getenv("STUB_FAULT");
    fault = text ? text : "";
    if (has_fault("mismatch"))
        return LIB_RM_VERSION_MISMATCH;
    text = getenv("STUB_GPUS");
    gpus = text ? atoi(text) : 2;
    if (gpus > MAX_GPUS)
        gpus = MAX_GPUS;
    text = getenv("STUB_CALL_US");
    call_us = text ? atol(text) : 0;
    pid_count = 0;
    for (text = getenv("STUB_PIDS"); text && *text && pid_count < MAX_PIDS; text = strchr(text, ',')) {
        text += *text == ',';
        pids[pid_count++] = (unsigned int)atoi(text);
    }
    init_s = now_s();
    return OK;
}

int nvmlShutdown(void)
{
    init_s = -1;
    return OK;
}

const char *nvmlErrorString(int code)
{
    (void)code;
    return "an error of the stub";
}

int nvmlSystemGetDriverVersion(char *text, unsigned int size)
{
    snprintf(text, size, "580.00.stub");
    return OK;
}

int nvmlSystemGetNVMLVersion(char *text, unsigned int size)
{
    snprintf(text, size, "13.580.00.stub");
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    *count = (unsigned int)gpus;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device)
{
    if (index >= (unsigned int)gpus)
        return INVALID_ARGUMENT;
    *device = &devices[index];
    return ask(*device);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device)
{
    int gpu;
    if (sscanf(uuid, "GPU-5700b000-0000-0000-0000-%d", &gpu) != 1 || gpu < 0 || gpu >= gpus)
        return NOT_FOUND;
    *device = &devices[gpu];
    return ask(*device);
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned int size)
{
    ASK(device);
    snprintf(text, size, "GPU-5700b000-0000-0000-0000-%012d", number(device));
    return OK;
}

int nvmlDeviceGetName(void *device, char *text, unsigned int size)
{
    ASK(device);
    snprintf(text, size, "Stub H100");
    return OK;
}

int nvmlDeviceGetPciInfo_v3(void *device, pci_t *pci)
{
    ASK(device);
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "0000FFFF:%02X:00.0", number(device));
    return OK;
}

#define NUMBER(name, type, content) \
    int name(void *device, type *value) { ASK(device); *value = (content); return OK; }

NUMBER(nvmlDeviceGetIndex, unsigned int, (unsigned int)number(device))
NUMBER(nvmlDeviceGetArchitecture, unsigned int, 9)
NUMBER(nvmlDeviceGetNumGpuCores, unsigned int, 16896)
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned int, 5120)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, 5)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, 5)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, 16)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, 16)
NUMBER(nvmlDeviceGetPersistenceMode, unsigned int, 1)
NUMBER(nvmlDeviceGetPerformanceState, unsigned int, 0)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, 700000)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, activity(number(device), now_s()) > 0.9 ? 4 : 0)
NUMBER(nvmlDeviceGetPowerUsage, unsigned int, (unsigned int)(1000 * power_w(number(device), now_s())))
NUMBER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long,
       (unsigned long long)(1000 * energy_j(number(device), now_s())))
NUMBER(nvmlDeviceGetSupportedEventTypes, unsigned long long, 0xF7FE)

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor)
{
    ASK(device);
    *major = 9;
    *minor = 0;
    return OK;
}

int nvmlDeviceGetEccMode(void *device, unsigned int *current, unsigned int *pending)
{
    ASK(device);
    *current = *pending = 1;
    return OK;
}

int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending)
{
    ASK(device);
    *current = *pending = 0;
    return OK;
}

int nvmlDeviceGetBAR1MemoryInfo(void *device, memory_t *memory)
{
    ASK(device);
    *memory = (memory_t){128ULL << 30, 127ULL << 30, 1ULL << 30};
    return OK;
}

int nvmlDeviceGetMaxClockInfo(void *device, unsigned int kind, unsigned int *mhz)
{
    ASK(device);
    *mhz = kind == 2 ? 2619 : 1980;
    return OK;
}

int nvmlDeviceGetClockInfo(void *device, unsigned int kind, unsigned int *mhz)
{
    ASK(device);
    *mhz = kind == 2 ? 2619 : 1980 - (unsigned int)(200 * activity(number(device), now_s()));
    return OK;
}

int nvmlDeviceGetTemperature(void *device, unsigned int sensor, unsigned int *celsius)
{
    (void)sensor;
    ASK(device);
    *celsius = 35 + (unsigned int)(30 * activity(number(device), now_s()));
    return OK;
}

int nvmlDeviceGetUtilizationRates(void *device, utilization_t *rates)
{
    ASK(device);
    if (has_fault("slow"))
        pause_s(0.04);
    if (has_fault("hang") && now_s() - init_s > 1.0)
        pause_s(3600);
    rates->gpu = (unsigned int)(100 * activity(number(device), now_s()));
    rates->memory = rates->gpu / 2;
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory)
{
    ASK(device);
    memory->total = MEMORY_B;
    memory->used = used_b(number(device)) + RESERVED_B;
    memory->free = memory->total - memory->used;
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2_t *memory)
{
    ASK(device);
    memory->total = MEMORY_B;
    memory->reserved = RESERVED_B;
    memory->used = used_b(number(device));
    memory->free = memory->total - memory->reserved - memory->used;
    return OK;
}

static void put(field_t *field, int type, double content)
{
    field->code = OK;
    field->type = (unsigned int)type;
    if (type == UNSIGNED_INT)
        field->value.ui = (unsigned int)content;
    else
        field->value.ull = (unsigned long long)content;
}

int nvmlDeviceGetFieldValues(void *device, int count, field_t *fields)
{
    ASK(device);
    int gpu = number(device);
    double t_s = now_s(), done_s = work(gpu, t_s);
    for (field_t *field = fields; field < fields + count; field++) {
        field->stamp_us = (long long)time_of_day_us();
        field->latency_us = 1;
        switch (field->field) {
        case 3: case 4: put(field, UNSIGNED_LONG_LONG, 0); break;
        case 74: put(field, UNSIGNED_LONG_LONG, 1e9 * done_s / 10); break;
        case 76: case 269: case 270: case 271: put(field, UNSIGNED_LONG_LONG, 0); break;
        case 82: put(field, UNSIGNED_INT, 40 + 35 * activity(gpu, t_s)); break;
        case 83: put(field, UNSIGNED_LONG_LONG, 1000 * energy_j(gpu, t_s)); break;
        case 138: case 139: put(field, UNSIGNED_LONG_LONG, 1e6 * done_s); break;
        case 144: put(field, UNSIGNED_INT, 0); break;
        case 185: put(field, UNSIGNED_INT, 1000 * (energy_j(gpu, t_s) - energy_j(gpu, t_s - 1))); break;
        case 186: put(field, UNSIGNED_INT, 1000 * power_w(gpu, t_s)); break;
        case 197: case 198: put(field, UNSIGNED_LONG_LONG, 1e9 * done_s); break;
        default: field->code = NOT_SUPPORTED;
        }
    }
    return OK;
}

int nvmlGpmQueryDeviceSupport(void *device, gpm_support_t *support)
{
    ASK(device);
    support->is_supported = 1;
    return OK;
}

int nvmlGpmSampleAlloc(gpm_sample_t **sample)
{
    *sample = calloc(1, sizeof **sample);
    return OK;
}

int nvmlGpmSampleFree(gpm_sample_t *sample)
{
    free(sample);
    return OK;
}

int nvmlGpmSampleGet(void *device, gpm_sample_t *sample)
{
    ASK(device);
    sample->gpu = number(device);
    sample->t_s = now_s();
    return OK;
}

int nvmlGpmMetricsGet(gpm_request_t *request)
{
    gpm_sample_t *from = request->sample1, *to = request->sample2;
    if (request->version != 1 || from->gpu != to->gpu || to->t_s - from->t_s < 0.1)
        return INVALID_ARGUMENT;
    double mean = (work(to->gpu, to->t_s) - work(from->gpu, from->t_s)) / (to->t_s - from->t_s);
    for (metric_t *metric = request->metrics; metric < request->metrics + request->count; metric++) {
        metric->code = OK;
        switch (metric->metric) {
        case 1: case 2: metric->value = 100 * mean; break;
        case 3: metric->value = 40 * mean; break;
        case 5: metric->value = 50 * mean; break;
        case 10: metric->value = 80 * mean; break;
        case 20: case 21: metric->value = 1e9 / (1 << 20) * mean; break;
        case 60: case 61: metric->value = 1e6 / 1024 * mean; break;
        default: metric->code = NOT_SUPPORTED;
        }
    }
    return OK;
}

int nvmlDeviceGetSamples(void *device, unsigned int kind, unsigned long long seen_us, unsigned int *type,
                         unsigned int *count, sample_t *samples)
{
    ASK(device);
    unsigned long long now_us = time_of_day_us(), newest = now_us / SAMPLE_US, first = newest - BUFFERED + 1;
    if (seen_us / SAMPLE_US + 1 > first)
        first = seen_us / SAMPLE_US + 1;
    if (first > newest)
        return NOT_FOUND;
    *type = UNSIGNED_INT;
    *count = (unsigned int)(newest - first + 1);
    for (unsigned int place = 0; samples && place < *count; place++) {
        samples[place].stamp_us = (first + place) * SAMPLE_US;
        double t_s = now_s() - (now_us - samples[place].stamp_us) / 1e6;
        samples[place].value.ui = (unsigned int)(100 * activity(number(device), t_s) / kind);
    }
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, process_t *processes)
{
    ASK(device);
    unsigned int room = *count;
    *count = 0;
    for (int place = number(device); place < pid_count; place += gpus, ++*count)
        if (*count < room)
            processes[*count] = (process_t){pids[place], 5ULL << 30, 0xFFFFFFFF, 0xFFFFFFFF};
    return *count > room ? INSUFFICIENT_SIZE : OK;
}

int nvmlEventSetCreate(void **set)
{
    *set = &told;
    return OK;
}

int nvmlEventSetFree(void *set)
{
    (void)set;
    return OK;
}

int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set)
{
    (void)types;
    (void)set;
    return ask(device);
}

int nvmlEventSetWait_v2(void *set, event_t *event, unsigned int timeout_ms)
{
    (void)set;
    double due_s = has_fault("storm") ? told * 0.001 : has_fault("xid") && !told ? 0.5 : 1e9;
    double left_s = init_s + due_s - now_s();
    pause_s(left_s < 0 ? 0 : left_s < timeout_ms / 1e3 ? left_s : timeout_ms / 1e3);
    if (left_s > timeout_ms / 1e3)
        return TIMEOUT;
    told++;
    *event = (event_t){&devices[0], 8, 31, 0xFFFFFFFF, 0xFFFFFFFF};
    return OK;
}
