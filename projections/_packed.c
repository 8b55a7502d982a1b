/* A table of byte strings by keys of 16 bytes, one block of memory for each: a third of what a dict of them takes. */

/* What may not stand here: see eventlog/slate/_rows.h. */
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_BYTES = 16, FIRST_SLOTS = 1024 };

typedef struct {
    uint32_t hash, value_bytes;
    char key[KEY_BYTES];
    char value[];
} Row;

/* A block stands in the first free slot from its hash on, around the end; at most two thirds of the slots are used. */
typedef struct {
    PyObject head;
    Row **slots;
    size_t mask, count;
} Table;

/* 0 for what can't be a key, -1 with an error. The hash is Python's own, which nobody outside can foresee. */
static int key_of(PyObject *object, char **key, uint32_t *hash)
{
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(object, key, &size) < 0)
        return -1;
    if (size != KEY_BYTES)
        return 0;
    Py_hash_t found = PyObject_Hash(object);
    if (found == -1 && PyErr_Occurred())
        return -1;
    *hash = (uint32_t)((uint64_t)found ^ (uint64_t)found >> 32);
    return 1;
}

/* The slot of a key, or the free one that it would get. */
static size_t slot_of(const Table *table, const char *key, uint32_t hash)
{
    size_t at = hash & table->mask;
    for (Row *row; (row = table->slots[at]) != NULL; at = (at + 1) & table->mask)
        if (row->hash == hash && memcmp(row->key, key, KEY_BYTES) == 0)
            break;
    return at;
}

static int grown(Table *table)
{
    size_t slots = 2 * (table->mask + 1);
    Row **old = table->slots, **new = calloc(slots, sizeof(Row *));
    if (new == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    size_t old_slots = table->mask + 1;
    table->slots = new;
    table->mask = slots - 1;
    for (size_t i = 0; i < old_slots; i++)
        if (old[i] != NULL) {
            size_t at = old[i]->hash & table->mask;
            while (new[at] != NULL)
                at = (at + 1) & table->mask;
            new[at] = old[i];
        }
    free(old);
    return 0;
}

/* Empty a slot, and move up the rows behind it that stand there only because it was taken. */
static void removed(Table *table, size_t free_at)
{
    free(table->slots[free_at]);
    table->slots[free_at] = NULL;
    table->count--;
    Row *row;
    for (size_t at = (free_at + 1) & table->mask; (row = table->slots[at]) != NULL; at = (at + 1) & table->mask) {
        size_t way = (at - row->hash) & table->mask;
        if (way >= ((at - free_at) & table->mask)) {
            table->slots[free_at] = row;
            table->slots[at] = NULL;
            free_at = at;
        }
    }
}

static int put(PyObject *self, PyObject *key_object, PyObject *value_object)
{
    Table *table = (Table *)self;
    char *key, *value = NULL;
    uint32_t hash;
    Py_ssize_t value_bytes = 0;
    int is_key = key_of(key_object, &key, &hash);
    if (is_key < 0 || (value_object != NULL && PyBytes_AsStringAndSize(value_object, &value, &value_bytes) < 0))
        return -1;
    if (is_key == 0 || value_bytes > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a key has 16 bytes, and a value less than 4 GiB");
        return -1;
    }
    size_t at = slot_of(table, key, hash);
    if (value_object == NULL) {
        if (table->slots[at] == NULL) {
            PyErr_SetObject(PyExc_KeyError, key_object);
            return -1;
        }
        removed(table, at);
        return 0;
    }
    if (table->slots[at] == NULL && 3 * (table->count + 1) > 2 * (table->mask + 1)) {
        if (grown(table) < 0)
            return -1;
        at = slot_of(table, key, hash);
    }
    Row *old = table->slots[at], *row = old;
    if (old == NULL || old->value_bytes != value_bytes) {
        row = realloc(old, sizeof(Row) + value_bytes);
        if (row == NULL) {
            PyErr_NoMemory();
            return -1;
        }
    }
    table->count += old == NULL;
    table->slots[at] = row;
    row->hash = hash;
    row->value_bytes = (uint32_t)value_bytes;
    memcpy(row->key, key, KEY_BYTES);
    memcpy(row->value, value, value_bytes);
    return 0;
}

/* Borrowed from the table; NULL where there is none, also with an error. */
static Row *found(PyObject *self, PyObject *key_object)
{
    char *key;
    uint32_t hash;
    Table *table = (Table *)self;
    return key_of(key_object, &key, &hash) == 1 ? table->slots[slot_of(table, key, hash)] : NULL;
}

static PyObject *get(PyObject *self, PyObject *key)
{
    Row *row = found(self, key);
    if (row != NULL)
        return PyBytes_FromStringAndSize(row->value, row->value_bytes);
    if (PyErr_Occurred())
        return NULL;
    return Py_NewRef(Py_None);
}

static int contains(PyObject *self, PyObject *key)
{
    Row *row = found(self, key);
    return row != NULL ? 1 : PyErr_Occurred() ? -1 : 0;
}

static Py_ssize_t length(PyObject *self) { return (Py_ssize_t)((Table *)self)->count; }

static PyObject *some_keys(PyObject *self, PyObject *arguments)
{
    Table *table = (Table *)self;
    unsigned long long from, limit;
    if (!PyArg_ParseTuple(arguments, "KK:some_keys", &from, &limit))
        return NULL;
    PyObject *list = PyList_New(0);
    size_t at = from;
    for (; list != NULL && at <= table->mask && limit > 0; at++) {
        Row *row = table->slots[at];
        if (row != NULL) {
            PyObject *key = PyBytes_FromStringAndSize(row->key, KEY_BYTES);
            if (key == NULL || PyList_Append(list, key) < 0)
                Py_CLEAR(list);
            Py_XDECREF(key);
            limit--;
        }
    }
    return list == NULL ? NULL : Py_BuildValue("NK", list, (unsigned long long)at);
}

static PyObject *new_table(PyTypeObject *type, PyObject *Py_UNUSED(arguments), PyObject *Py_UNUSED(names))
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Table *table = (Table *)alloc(type, 0);
    if (table == NULL)
        return NULL;
    table->count = 0;
    table->mask = FIRST_SLOTS - 1;
    table->slots = calloc(FIRST_SLOTS, sizeof(Row *));
    if (table->slots == NULL) {
        Py_DECREF(table);
        return PyErr_NoMemory();
    }
    return (PyObject *)table;
}

static void dealloc(PyObject *self)
{
    Table *table = (Table *)self;
    for (size_t at = 0; table->slots != NULL && at <= table->mask; at++)
        free(table->slots[at]);
    free(table->slots);
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"get", get, METH_O, "The value of a key, or None."},
    {"some_keys", some_keys, METH_VARARGS, "So many keys from a slot on, in no order, and the slot to go on from."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Byte strings by keys of 16 bytes, in little memory."},
    {Py_tp_new, new_table},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_mp_ass_subscript, put},
    {Py_sq_contains, contains},
    {Py_mp_length, length},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "ledgerq.projections._packed.PackedRows",
    .basicsize = sizeof(Table),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

static int filled(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec);
    int outcome = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return outcome;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, filled}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_packed",
    .m_doc = "A table of byte strings in little memory.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__packed(void) { return PyModuleDef_Init(&definition); }
