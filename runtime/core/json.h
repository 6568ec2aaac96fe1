// Reading JSON from files that are not trusted: size, depth and type are checked; messages name
// file, line, key. Trees are cJSON's and freed with cJSON_Delete().
#ifndef TANDEM_CORE_JSON_H
#define TANDEM_CORE_JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/core/status.h"

enum { TD_JSON_MAX_DEPTH = 64 };

// `where` is what messages call the text: a path, or "path:line". Trailing characters other than
// white space are an error, as are NUL bytes, invalid UTF-8 and nesting beyond TD_JSON_MAX_DEPTH.
// TD_ERR_DATA.
td_status td_json_parse(const char *where, const char *text, size_t bytes, cJSON **out);
td_status td_json_read(const char *path, size_t max_bytes, cJSON **out);

// Whether JSON can hold the text: anything else would print to a file that nobody can read.
int td_json_is_utf8(const char *text, size_t bytes);

// Typed look-ups in an object. Missing or null key: *out keeps its value and TD_OK is returned (set
// the default first). Wrong type or, for integers, a fraction or a value outside [min, max]:
// TD_ERR_DATA.
td_status td_json_int(const char *where, const cJSON *object, const char *key, int64_t min,
                      int64_t max, int64_t *out);
td_status td_json_double(const char *where, const cJSON *object, const char *key, double *out);
td_status td_json_bool(const char *where, const cJSON *object, const char *key, int *out);
// Points into the tree.
td_status td_json_string(const char *where, const cJSON *object, const char *key, const char **out);

// Prints to a string the caller frees with free(); numbers keep 17 significant digits.
char *td_json_print(const cJSON *tree, int pretty);

#endif
