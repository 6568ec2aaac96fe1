// Which files a list of names, folders and patterns means. Local to the calling rank.
#ifndef TANDEM_DATA_SOURCES_H
#define TANDEM_DATA_SOURCES_H

#include "runtime/core/config.h"

// Each entry is one of:
// - a file, whatever its name;
// - a folder: its *.jsonl, *.jsonl.gz and *.jsonl.zst, not those of folders in it. (Files ending in
//   .json are often not data: name them by a pattern.)
// - a pattern as in glob(7), with "**" for any number of folders: "data/**/train-*.json.gz". It
//   matches files only, and hidden ones only where the pattern has the dot. "data/**" is the folder
//   with all folders in it.
// A name that exists is never read as a pattern. Files keep the order of the entries and, within
// one, are in order of their bytes, so that the order is the same on every machine.
//
// TD_ERR_DATA: nothing there, a pattern or folder without files, or a file named twice, also by
// another path to it: what is given twice on purpose would be found as a duplicate anyway.
// *out is the caller's, td_sources_fini(); untouched after a failure.
td_status td_sources_expand(const td_string_list *patterns, td_string_list *out);
void td_sources_fini(td_string_list *files);

#endif
