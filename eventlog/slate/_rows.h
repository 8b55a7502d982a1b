/* What _rows.c, _pages.c and _sums.c share: the types and functions of SlateDB's shared library, and how its futures are driven. */

/* Built once for CPython 3.11 and all later ones, by any of them. Two things that work where they are built then fail
   on an older one: a '#' in a format of PyArg_ParseTuple (the headers of 3.13 no longer know PY_SSIZE_T_CLEAN), and
   Py_RETURN_NONE (from 3.12 on it counts no reference, since None is immortal there). Neither may stand here. */
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>

typedef struct {
    uint64_t capacity, len;
    uint8_t *data;
} RustBuffer;

typedef struct {
    int8_t code; /* 0: no error */
    RustBuffer error;
} CallStatus;

typedef void (*Woken)(uint64_t data, int8_t code);

/* The functions of the library, in the order in which native_binding.py names them. */
extern struct Rust {
    RustBuffer (*alloc)(uint64_t bytes, CallStatus *);
    uint64_t (*clone_db)(uint64_t db, CallStatus *);
    uint64_t (*clone_batch)(uint64_t batch, CallStatus *);
    void (*put)(uint64_t batch, RustBuffer key, RustBuffer value, CallStatus *);
    void (*delete)(uint64_t batch, RustBuffer key, CallStatus *);
    uint64_t (*write)(uint64_t db, uint64_t batch, RustBuffer options);
    void (*poll_write)(uint64_t future, Woken, uint64_t data);
    uint64_t (*complete_write)(uint64_t future, CallStatus *);
    void (*free_write)(uint64_t future);
    void (*free_written)(uint64_t handle, CallStatus *);
    uint64_t (*flush)(uint64_t db, RustBuffer options);
    void (*poll_flush)(uint64_t future, Woken, uint64_t data);
    void (*complete_flush)(uint64_t future, CallStatus *);
    void (*free_flush)(uint64_t future);
    uint64_t (*clone_scan)(uint64_t scan, CallStatus *);
    uint64_t (*next_batch)(uint64_t scan, uint32_t limit);
    void (*poll_page)(uint64_t future, Woken, uint64_t data);
    RustBuffer (*complete_page)(uint64_t future, CallStatus *);
    void (*free_page)(uint64_t future);
    void (*free_buffer)(RustBuffer, CallStatus *);
} rust;

enum { DONE, FAILED, LATE, NO_MEMORY };

/* Poll a future until it is ready: its result may then be taken. Gives up, with LATE, when nothing happens for a while. */
int drive(void (*poll)(uint64_t, Woken, uint64_t), uint64_t future, long long limit_us);

/* None, also where an error was left in the status; raises what LATE and NO_MEMORY mean. */
PyObject *ended(int outcome);

/* The sum of rows in any order: how many, and their hashes, which are added up in two lanes. See _sums.c. */
typedef struct {
    uint64_t rows, lanes[2];
} Sum;

enum { SECRET_BYTES = 16 };

/* Add one row, given as its key and its value one behind the other, each after its length in 4 bytes, big-endian. */
void add_row(Sum *sum, const uint8_t *row, size_t bytes, const uint8_t *secret);

/* Three numbers; NULL with an error. */
PyObject *sum_as_tuple(const Sum *sum);

/* 0 with an error when these are not the bytes of a secret. */
int secret_of(PyObject *object, const uint8_t **secret);

/* The module's functions in _pages.c and _sums.c. */
PyObject *rows_parse(PyObject *module, PyObject *encoded);
PyObject *rows_next(PyObject *module, PyObject *arguments);
PyObject *rows_next_sum(PyObject *module, PyObject *arguments);
PyObject *rows_sum(PyObject *module, PyObject *arguments);
