/* A pool of threads for loops of independent tasks, and the growable buffers of a frame.
 *
 * Which thread runs which task is not fixed; results are, because no task's result depends on it. A region is
 * opened by one store of a ticket word (generation, number of tasks, next task); a thread that comes late finds no
 * task left, so nobody waits for a sleeping thread to wake.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

#define TASK_BITS 20
#define TASK_MASK ((1u << TASK_BITS) - 1)
#define SPINS 4000 /* some tens of microseconds: the gap between two stages of a training step */

static struct {
    pthread_mutex_t region, sleep; /* region: recursive, so that a stage can hold it over all its loops */
    pthread_cond_t wake;
    pthread_t workers[MAX_THREADS];
    int wanted, running; /* threads, the caller's included */
    atomic_ullong ticket;
    atomic_llong finished;
    atomic_int sleepers, stop;
    task_fn task;
    void *context;
} pool;

INLINE void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

INLINE uint64_t generation_of(uint64_t ticket) { return ticket >> (2 * TASK_BITS); }

static void take_tasks(int thread) {
    for (;;) {
        uint64_t ticket = atomic_fetch_add(&pool.ticket, 1);
        int64_t next = ticket & TASK_MASK, count = (ticket >> TASK_BITS) & TASK_MASK;
        if (next >= count) return;
        pool.task(pool.context, next, thread);
        atomic_fetch_add(&pool.finished, 1);
    }
}

static void *worker(void *argument) {
    int thread = (int)(intptr_t)argument;
    uint64_t seen = 0;
    for (;;) {
        int spins = 0;
        while (generation_of(atomic_load(&pool.ticket)) == seen && !atomic_load(&pool.stop)) {
            if (++spins < SPINS) {
                relax();
                continue;
            }
            pthread_mutex_lock(&pool.sleep);
            atomic_fetch_add(&pool.sleepers, 1);
            while (generation_of(atomic_load(&pool.ticket)) == seen && !atomic_load(&pool.stop))
                pthread_cond_wait(&pool.wake, &pool.sleep);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.sleep);
        }
        if (atomic_load(&pool.stop)) return NULL;
        seen = generation_of(atomic_load(&pool.ticket));
        take_tasks(thread);
    }
}

static void wake_workers(void) {
    if (atomic_load(&pool.sleepers) == 0) return;
    pthread_mutex_lock(&pool.sleep);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep);
}

static void stop_workers(void) {
    atomic_store(&pool.stop, 1);
    pthread_mutex_lock(&pool.sleep);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep);
    for (int i = 1; i < pool.running; i++) pthread_join(pool.workers[i], NULL);
    atomic_store(&pool.stop, 0);
    pool.running = 0;
}

static void init_locks(void) {
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&pool.region, &recursive);
    pthread_mutexattr_destroy(&recursive);
    pthread_mutex_init(&pool.sleep, NULL);
    pthread_cond_init(&pool.wake, NULL);
}

/* threads do not survive a fork: the child starts its own at its first region */
static void after_fork(void) {
    init_locks();
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.stop, 0);
    pool.running = 0;
}

__attribute__((constructor)) static void on_load(void) {
    init_locks();
    pthread_atfork(NULL, NULL, after_fork);
}

void pool_lock(void) { pthread_mutex_lock(&pool.region); }
void pool_unlock(void) { pthread_mutex_unlock(&pool.region); }

static void start_workers(void) {
    /* a new worker has seen generation 0 only; the ticket must look closed to it until the next region opens */
    atomic_store(&pool.ticket, 0);
    pool.running = 1;
    while (pool.running < pool.wanted) {
        if (pthread_create(&pool.workers[pool.running], NULL, worker, (void *)(intptr_t)pool.running)) break;
        pool.running++; /* fewer threads than asked for change the time, not the result */
    }
}

int pool_threads(void) {
    if (!pool.wanted) {
        int cores = cpu_cores();
        pool.wanted = cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : cores;
    }
    return pool.wanted;
}

static void run_region(int64_t count, task_fn task, void *context) {
    static uint64_t generation;
    if (!pool.running) {
        start_workers();
        generation = 0;
    }
    pool.task = task;
    pool.context = context;
    atomic_store(&pool.finished, 0);
    generation = (generation + 1) & 0xffffff;
    if (!generation) generation = 1;
    atomic_store(&pool.ticket, generation << (2 * TASK_BITS) | (uint64_t)count << TASK_BITS);
    wake_workers();
    take_tasks(0);
    for (int spins = 0; atomic_load(&pool.finished) < count;) {
        relax();
        if (++spins > SPINS) usleep(20), spins = 0;
    }
}

typedef struct {
    task_fn task;
    void *context;
    int64_t first;
} shifted;

static void run_shifted(void *context, int64_t i, int thread) {
    shifted *s = context;
    s->task(s->context, s->first + i, thread);
}

void parallel_for(int64_t count, task_fn task, void *context) {
    if (count <= 0) return;
    pool_lock();
    if (pool_threads() == 1 || count == 1) {
        for (int64_t i = 0; i < count; i++) task(context, i, 0);
    } else {
        shifted s = {task, context, 0}; /* more tasks than a ticket counts go in turns */
        const int64_t most = TASK_MASK - 2 * MAX_THREADS; /* each thread overshoots the count, perhaps twice */
        for (; s.first < count; s.first += most) run_region(min_i64(count - s.first, most), run_shifted, &s);
    }
    pool_unlock();
}

void gsopt_set_threads(int threads) {
    pool_lock();
    if (pool.running) stop_workers();
    pool.wanted = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    pool_unlock();
}

int gsopt_get_threads(void) {
    pool_lock();
    int threads = pool_threads();
    pool_unlock();
    return threads;
}

int buffer_reserve(buffer *b, size_t bytes) {
    if (bytes <= b->bytes) return 0;
    size_t grown = (bytes + bytes / 8 + 4095) & ~(size_t)4095; /* a growing scene does not allocate at each step */
    free(b->data);
    b->data = aligned_alloc(4096, grown);
    b->bytes = b->data ? grown : 0;
    return b->data ? 0 : GSOPT_NO_MEMORY;
}

void buffer_release(buffer *b) {
    free(b->data);
    *b = (buffer){0};
}

gsopt_frame *gsopt_frame_new(void) { return calloc(1, sizeof(gsopt_frame)); }

#define EACH_BUFFER(frame, do_with)                                                                                   \
    do {                                                                                                             \
        gsopt_frame *f_ = (frame);                                                                                   \
        buffer *all[] = {&f_->splats,      &f_->footprints,   &f_->chunk_visible, &f_->keys[0],       &f_->keys[1],  \
                         &f_->ids[0],      &f_->ids[1],       &f_->sort_counts,   &f_->tile_cursors,                 \
                         &f_->tile_offsets, &f_->tile_ends,   &f_->tile_work,     &f_->entries,       &f_->masks,    \
                         &f_->records,     &f_->touched,      &f_->transmittance, &f_->stops,         &f_->loss_sums, \
                         &f_->loss_scratch, &f_->wide_colors};                                                       \
        for (size_t i_ = 0; i_ < sizeof all / sizeof *all; i_++) do_with(all[i_]);                                   \
    } while (0)

void gsopt_frame_free(gsopt_frame *frame) {
    if (!frame) return;
    EACH_BUFFER(frame, buffer_release);
    free(frame);
}

void gsopt_frame_work(const gsopt_frame *frame, int64_t work[4]) {
    work[0] = frame->visible, work[1] = frame->pairs, work[2] = work[3] = 0;
    const int32_t(*tiles)[2] = frame->tile_work.data;
    for (int i = 0; i < frame->tiles_x * frame->tiles_y && tiles; i++) work[2] += tiles[i][0], work[3] += tiles[i][1];
}

int64_t gsopt_frame_bytes(const gsopt_frame *frame) {
    int64_t bytes = sizeof *frame;
#define COUNT(b) bytes += (int64_t)(b)->bytes
    EACH_BUFFER((gsopt_frame *)frame, COUNT);
    return bytes;
}
