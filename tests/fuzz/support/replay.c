// Runs a fuzz target over the files of a folder, where there is no libFuzzer.
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_BYTES = 1 << 24 };

static int run_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return 0;
    uint8_t *data = malloc(MAX_BYTES);
    size_t size = data ? fread(data, 1, MAX_BYTES, file) : 0;
    fclose(file);
    // A copy of the exact size, so that a sanitizer sees a read beyond it.
    uint8_t *exact = malloc(size ? size : 1);
    for (size_t i = 0; exact && data && i < size; i++)
        exact[i] = data[i];
    free(data);
    int ran = exact != NULL;
    if (ran)
        LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    return ran;
}

int main(int argc, char **argv) {
    DIR *folder = argc == 2 ? opendir(argv[1]) : NULL;
    int count = 0;
    if (!folder) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    for (struct dirent *entry; (entry = readdir(folder));) {
        char path[4096];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", argv[1], entry->d_name);
        if (!run_file(path)) {
            fprintf(stderr, "cannot run %s\n", path);
            return 1;
        }
        count++;
    }
    closedir(folder);
    printf("%d inputs\n", count);
    return count > 0 ? 0 : 1;
}
