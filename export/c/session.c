/* What the backend "native" puts behind a generated network: row blocks over sleeping threads, and one call from Python.

   Defined before this text: INPUTS, OUTPUTS, MOST_DIMS; X_DIMS, Y_DIMS (numbers of dimensions, the batch among them),
   X_SHAPE, Y_SHAPE (of one sample), X_SIZE, Y_SIZE (numbers of one sample); PART_ROWS, of a block, a multiple of the
   network's own; NETWORK(x, y, rows, workspace).

   The interpreter's and NumPy's functions come as addresses, so that neither's headers are needed. Of their structures
   only the heads are used that every compiled extension has built in. */

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

typedef struct { intptr_t references; void *type; } object;
typedef struct { object head; char *data; int dims; intptr_t *shape, *strides; object *base; void *descr; int flags; } array;
enum { CONTIGUOUS = 1, ALIGNED = 0x100, FLOAT32 = 11, MOST_THREADS = 256 };

typedef struct { const float *x[INPUTS]; float *y[OUTPUTS]; size_t rows; } call;

typedef struct { /* in this order in native_session.py */
    void *array_type, *tuple_type, *float32;
    object *none;
    object *(*new_array)(void *, int, const intptr_t *, int, const intptr_t *, void *, int, int, object *);
    object *(*new_tuple)(intptr_t);
    int (*set_item)(object *, intptr_t, object *);
    object *(*get_item)(object *, intptr_t);
    intptr_t (*tuple_size)(object *);
    void (*keep)(object *), (*drop)(object *);
    void *(*let_others_run)(void);
    void (*take_over)(void *);
    void (*forget_error)(void);
} python;

typedef struct {
    python py;
    size_t few, most; /* rows up to which other Python threads wait; up to which hrt_call answers */
    char *workspaces; /* one per thread, the caller's first */
    size_t workspace;
    int threads, made, started, inside;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    const call *task;
    size_t parts, next; /* of the task */
    int working, status, closed;
    pthread_t members[MOST_THREADS];
} session;

/* Results too small for a normal number become 0 while the network runs: on x86 each would take a hundred cycles, and
   sigmoids of large negative numbers are such. */
#ifdef __SSE__
enum { FLUSH = 0x8000 };
static unsigned flush_small(void) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH);
    return before;
}
static void flush_as(unsigned before) { _mm_setcsr(before); }
#else
static unsigned flush_small(void) { return 0; }
static void flush_as(unsigned before) { (void)before; }
#endif

static int run_rows(const call *c, size_t first, size_t rows, void *workspace) {
    const float *x[INPUTS];
    float *y[OUTPUTS];
    for (int k = 0; k < INPUTS; k++) x[k] = c->x[k] + first * X_SIZE[k];
    for (int k = 0; k < OUTPUTS; k++) y[k] = c->y[k] + first * Y_SIZE[k];
    const unsigned before = flush_small();
    const int status = NETWORK(x, y, rows, workspace);
    flush_as(before);
    return status;
}

/* Blocks of the task until none is left. The last has the rest, so that bits do not depend on the number of threads. */
static void run_parts(session *s, const call *c, void *workspace) {
    for (;;) {
        size_t k = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
        if (k >= s->parts) return;
        size_t first = k * PART_ROWS, rows = k + 1 < s->parts ? PART_ROWS : c->rows - first;
        int status = run_rows(c, first, rows, workspace);
        if (status) __atomic_store_n(&s->status, status, __ATOMIC_RELAXED);
    }
}

static void *member(void *given) {
    session *s = given;
    pthread_mutex_lock(&s->lock);
    char *workspace = s->workspaces + s->workspace * (size_t)++s->started;
    while (!s->closed) {
        if (s->task && __atomic_load_n(&s->next, __ATOMIC_RELAXED) < s->parts) {
            const call *c = s->task;
            s->working++;
            pthread_mutex_unlock(&s->lock);
            run_parts(s, c, workspace);
            pthread_mutex_lock(&s->lock);
            if (--s->working == 0) pthread_cond_signal(&s->done);
        } else {
            pthread_cond_wait(&s->wake, &s->lock);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* Signals are Python's: its main thread gets them. */
static void start(session *s) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (s->made < s->threads - 1 && !pthread_create(&s->members[s->made], NULL, member, s)) s->made++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (s->made < s->threads - 1) s->threads = s->made + 1; /* no more of them here */
}

/* By whoever has s->inside. A member that is not yet awake when the last block begins is not waited for. */
static int run_shared(session *s, const call *c) {
    size_t parts = c->rows / PART_ROWS;
    if (s->threads < 2 || parts < 2) return run_rows(c, 0, c->rows, s->workspaces);
    pthread_mutex_lock(&s->lock);
    s->parts = parts;
    s->next = 0;
    s->status = 0;
    s->task = c;
    if (s->made < s->threads - 1) start(s);
    for (size_t k = 1; k < parts && k < (size_t)s->threads; k++) pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    run_parts(s, c, s->workspaces);
    pthread_mutex_lock(&s->lock);
    s->task = NULL;
    while (s->working) pthread_cond_wait(&s->done, &s->lock);
    pthread_mutex_unlock(&s->lock);
    return s->status;
}

static int enter(session *s) { return !__atomic_exchange_n(&s->inside, 1, __ATOMIC_ACQUIRE); }
static void leave(session *s) { __atomic_store_n(&s->inside, 0, __ATOMIC_RELEASE); }

size_t hrt_session_bytes(void) { return sizeof(session); }

/* Also in a forked process, where the threads are gone, and whoever was inside with them. */
void hrt_renew(session *s) {
    s->made = s->started = s->inside = s->working = s->closed = 0;
    s->task = NULL;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    pthread_cond_init(&s->done, NULL);
}

void hrt_open(session *s, const python *py, size_t few, size_t most, char *workspaces, size_t workspace, int threads) {
    memset(s, 0, sizeof *s);
    s->py = *py;
    s->few = few;
    s->most = most;
    s->workspaces = workspaces;
    s->workspace = workspace;
    s->threads = threads > MOST_THREADS ? MOST_THREADS : threads;
    hrt_renew(s);
}

/* Ends the threads. Later calls run alone. */
void hrt_close(session *s) {
    pthread_mutex_lock(&s->lock);
    s->closed = 1;
    s->threads = 1;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
    for (; s->made; s->made--) pthread_join(s->members[s->made - 1], NULL);
}

/* Without the interpreter. workspace: the caller's, used where somebody else is inside, who has the threads. */
int hrt_run(session *s, const call *c, void *workspace) {
    if (!enter(s)) return run_rows(c, 0, c->rows, workspace);
    int status = run_shared(s, c);
    leave(s);
    return status;
}

static const array *fitting(const python *py, const object *given, int k) {
    const array *a = (const array *)given;
    if (given->type != py->array_type || a->descr != py->float32 || a->dims != X_DIMS[k]) return NULL;
    if ((a->flags & (CONTIGUOUS | ALIGNED)) != (CONTIGUOUS | ALIGNED)) return NULL;
    for (int d = 1; d < a->dims; d++)
        if (a->shape[d] != X_SHAPE[k][d - 1]) return NULL;
    return a;
}

static object *answer(session *s, object *given) {
    const python *py = &s->py;
    const int tuple = given->type == py->tuple_type;
    object *out[OUTPUTS];
    call c;
    if (tuple ? py->tuple_size(given) != INPUTS : INPUTS != 1) return NULL;
    for (int k = 0; k < INPUTS; k++) {
        const array *a = fitting(py, tuple ? py->get_item(given, k) : given, k);
        if (!a || (k && c.rows != (size_t)a->shape[0])) return NULL;
        c.rows = (size_t)a->shape[0];
        c.x[k] = (const float *)a->data;
    }
    if (c.rows > s->most) return NULL;
    int made = 0, status = 0;
    for (; made < OUTPUTS; made++) {
        intptr_t shape[MOST_DIMS] = {(intptr_t)c.rows};
        for (int d = 1; d < Y_DIMS[made]; d++) shape[d] = Y_SHAPE[made][d - 1];
        out[made] = py->new_array(py->array_type, Y_DIMS[made], shape, FLOAT32, NULL, NULL, 0, 0, NULL);
        if (!out[made]) { /* no memory: the long way says so */
            py->forget_error();
            break;
        }
        c.y[made] = (float *)((array *)out[made])->data;
    }
    if (made == OUTPUTS && c.rows <= s->few) {
        status = run_rows(&c, 0, c.rows, s->workspaces);
    } else if (made == OUTPUTS) {
        void *thread = py->let_others_run();
        status = run_shared(s, &c);
        py->take_over(thread);
    }
    if (made == OUTPUTS && !status && OUTPUTS == 1) return out[0];
    object *all = made == OUTPUTS && !status ? py->new_tuple(OUTPUTS) : NULL;
    if (made == OUTPUTS && !status && !all) py->forget_error();
    for (int k = 0; k < made; k++) {
        if (all) py->set_item(all, k, out[k]);
        else py->drop(out[k]);
    }
    return all;
}

/* A builtin function of one argument. self: an array that is a session. None where `given` does not fit, or somebody is
   inside. */
object *hrt_call(object *self, object *given) {
    session *s = (session *)((array *)self)->data;
    object *result = NULL;
    if (enter(s)) {
        result = answer(s, given);
        leave(s);
    }
    if (result) return result;
    s->py.keep(s->py.none);
    return s->py.none;
}
