// Gives ELF files another search path for their libraries, in place:
//
//     set_rpath PATH FILE...
//
// The path a file was linked with is overwritten, so the new one can be no longer; a file without
// one is left as it is. The entry becomes a DT_RPATH: unlike a DT_RUNPATH it also holds for the
// libraries of the libraries and for plugins, and no LD_LIBRARY_PATH of the user comes before it.
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct image {
    const char *name;
    unsigned char *bytes;
    size_t size;
} image;

static int fail(const char *name, const char *why) {
    fprintf(stderr, "set_rpath: %s: %s\n", name, why);
    return -1;
}

// The part [offset, offset + bytes) of the file, NULL when the file ends before it.
static void *part(const image *self, uint64_t offset, uint64_t bytes) {
    if (offset > self->size || bytes > self->size - offset)
        return NULL;
    return self->bytes + offset;
}

static const Elf64_Phdr *program_headers(const image *self, size_t *out_count) {
    const Elf64_Ehdr *header = part(self, 0, sizeof *header);
    if (!header || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 ||
        header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB)
        return NULL;
    *out_count = header->e_phnum;
    return part(self, header->e_phoff, header->e_phnum * sizeof(Elf64_Phdr));
}

// Where the loader's address `address` lies in the file, SIZE_MAX when in no segment.
static uint64_t file_offset(const Elf64_Phdr *headers, size_t count, uint64_t address) {
    for (size_t i = 0; i < count; i++) {
        const Elf64_Phdr *h = &headers[i];
        if (h->p_type == PT_LOAD && address >= h->p_vaddr && address - h->p_vaddr < h->p_filesz)
            return h->p_offset + (address - h->p_vaddr);
    }
    return SIZE_MAX;
}

static Elf64_Dyn *find_entry(Elf64_Dyn *entries, size_t count, Elf64_Sxword tag) {
    for (size_t i = 0; i < count && entries[i].d_tag != DT_NULL; i++)
        if (entries[i].d_tag == tag)
            return &entries[i];
    return NULL;
}

static int overwrite(const image *self, const Elf64_Phdr *headers, size_t count, Elf64_Dyn *entry,
                     const Elf64_Dyn *strings, const char *path) {
    uint64_t start = strings ? file_offset(headers, count, strings->d_un.d_ptr) : SIZE_MAX;
    char *text = start == SIZE_MAX ? NULL : part(self, start + entry->d_un.d_val, 1);
    if (!text || !memchr(text, 0, (size_t)(self->bytes + self->size - (unsigned char *)text)))
        return fail(self->name, "the string table is damaged");
    size_t room = strlen(text);
    if (strlen(path) > room)
        return fail(self->name, "the path it was linked with is shorter than the new one");
    memset(text, 0, room);
    memcpy(text, path, strlen(path));
    entry->d_tag = DT_RPATH;
    return 0;
}

static int edit(const image *self, const char *path) {
    size_t count = 0;
    const Elf64_Phdr *headers = program_headers(self, &count);
    if (!headers)
        return fail(self->name, "no 64-bit little-endian ELF file");
    for (size_t i = 0; i < count; i++) {
        if (headers[i].p_type != PT_DYNAMIC)
            continue;
        size_t n = headers[i].p_filesz / sizeof(Elf64_Dyn);
        Elf64_Dyn *entries = part(self, headers[i].p_offset, n * sizeof *entries);
        if (!entries)
            return fail(self->name, "the dynamic section is damaged");
        Elf64_Dyn *entry = find_entry(entries, n, DT_RUNPATH);
        if (!entry)
            entry = find_entry(entries, n, DT_RPATH);
        if (entry)
            return overwrite(self, headers, count, entry, find_entry(entries, n, DT_STRTAB), path);
    }
    return 0;
}

static int edit_file(const char *name, const char *path) {
    struct stat info;
    int file = open(name, O_RDWR);
    if (file < 0 || fstat(file, &info) != 0) {
        int code = fail(name, strerror(errno));
        if (file >= 0)
            close(file);
        return code;
    }
    image self = {.name = name, .size = (size_t)info.st_size};
    void *bytes = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (bytes == MAP_FAILED)
        return fail(name, strerror(errno));
    self.bytes = bytes;
    int code = edit(&self, path);
    munmap(bytes, self.size);
    return code;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: set_rpath PATH FILE...\n");
        return 2;
    }
    for (int i = 2; i < argc; i++)
        if (edit_file(argv[i], argv[1]) != 0)
            return 1;
    return 0;
}
