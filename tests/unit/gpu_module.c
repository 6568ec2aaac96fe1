// Where the GPU module is looked for, and what is said when it cannot be used. Loading happens once
// in a process, so every case is a process of its own: this program with the word "report".
#include <unistd.h>

#include "runtime/core/gpu_module.h"
#include "scratch.h"
#include "test.h"

static const char good[] = FAKE_MODULE;
static char program[512];

// What a process says that runs `path` with `settings` in its environment.
static const char *report_of(const char *path, const char *settings) {
    static char line[1024];
    char command[2048];
    snprintf(command, sizeof command, "env -u TANDEM_GPU_MODULE %s '%s' report", settings, path);
    FILE *output = popen(command, "r");
    REQUIRE(output != NULL);
    line[0] = '\0';
    CHECK(fgets(line, sizeof line, output) != NULL);
    CHECK_INT(pclose(output), 0);
    line[strcspn(line, "\n")] = '\0';
    return line;
}

static const char *report_with(const char *module, const char *settings) {
    char all[1024];
    snprintf(all, sizeof all, "TANDEM_GPU_MODULE='%s' %s", module, settings);
    return report_of(program, all);
}

static void check_says(const char *report, const char *first, const char *second) {
    if (!CHECK(strstr(report, first) && strstr(report, second)))
        fprintf(stderr, "    \"%s\" without \"%s\" or \"%s\"\n", report, first, second);
}

static void no_file_is_a_build_for_cpus(void) {
    check_says(report_of(program, ""), "libtandem_cuda.so", "for CPUs only");
    check_says(report_with("", ""), "libtandem_cuda.so", "for CPUs only");
}

static void named_file_must_be_there(void) {
    check_says(report_with("/nowhere/module.so", ""), "TANDEM_GPU_MODULE", "/nowhere/module.so");
}

static void what_is_wrong_with_a_file_is_said(void) {
    check_says(report_with("/proc/self/status", ""), "cannot be loaded", "/proc/self/status");
    check_says(report_with(FAKE_MODULE_WITHOUT_LIBRARY, ""), "cannot be loaded", "absent_library");
    check_says(report_with(FAKE_MODULE_WITHOUT_ENTRY, ""), "is no GPU module", "td_gpu_module_get");
    check_says(report_with(good, "FAKE_VERSION=7 FAKE_DEVICES=1"), "version 7", "same build");
}

static void module_without_a_device_says_why(void) {
    CHECK_STRING(report_with(good, ""), "nothing but air");
    CHECK_STRING(report_with(good, "FAKE_DEVICES=3"), "3 devices");
}

static void copy(const char *from, const char *to) {
    char command[2048];
    snprintf(command, sizeof command, "mkdir -p \"$(dirname '%s')\" && cp '%s' '%s'", to, from, to);
    REQUIRE(system(command) == 0);
}

// As if a driver were there, or one that cannot be loaded.
static const char *with_driver(const char *settings, int is_whole) {
    static char folder[512], all[1100];
    if (!folder[0])
        snprintf(folder, sizeof folder, "%s", scratch("driver"));
    char driver[600];
    snprintf(driver, sizeof driver, "%s/libcuda.so.1", folder);
    copy(is_whole ? FAKE_MODULE_WITHOUT_ENTRY : "/proc/self/status", driver);
    snprintf(all, sizeof all, "LD_LIBRARY_PATH='%s' %s", folder, settings);
    return all;
}

static void file_is_found_from_the_program(void) {
    const char *moved = scratch("bin/program"), *beside = scratch("bin/libtandem_cuda.so");
    copy(program, moved);
    check_says(report_of(moved, with_driver("FAKE_DEVICES=2", 1)), "for CPUs only", "");
    copy(good, scratch("lib/tandem/libtandem_cuda.so"));
    CHECK_STRING(report_of(moved, with_driver("FAKE_DEVICES=2", 1)), "2 devices");
    // A file beside the program comes first, and a named one before both.
    copy(FAKE_MODULE_WITHOUT_ENTRY, beside);
    check_says(report_of(moved, with_driver("", 1)), "is no GPU module", "bin/libtandem_cuda.so");
    check_says(report_of(moved, "TANDEM_GPU_MODULE=/nowhere"), "there is no file", "/nowhere");
}

// A named module is loaded all the same: it may be one that needs none.
static void without_a_driver_nothing_is_loaded(void) {
    const char *moved = scratch("alone/program");
    copy(program, moved);
    copy(good, scratch("alone/libtandem_cuda.so"));
    check_says(report_of(moved, with_driver("FAKE_DEVICES=2", 0)), "no NVIDIA driver", "");
    CHECK_STRING(report_with(good, with_driver("FAKE_DEVICES=2", 0)), "2 devices");
}

// Also without a slash, where the dynamic linker would look in the system's folders.
static void named_file_may_be_of_the_current_folder(void) {
    char settings[700];
    copy(good, scratch("here/module.so"));
    snprintf(settings, sizeof settings, "-C '%s' TANDEM_GPU_MODULE=module.so FAKE_DEVICES=2",
             scratch("here"));
    CHECK_STRING(report_of(program, settings), "2 devices");
}

static int report(void) {
    const td_gpu_module *module, *again;
    char reason[600] = "", second[600] = "";
    td_gpu_module_load(&module, reason, sizeof reason);
    td_gpu_module_load(&again, second, sizeof second);
    if (module != again || strcmp(reason, second) != 0)
        return 1;
    if (module)
        printf("%d devices\n", module->device_count(reason, sizeof reason));
    else
        printf("%s\n", reason);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "report") == 0)
        return report();
    ssize_t chars = readlink("/proc/self/exe", program, sizeof program - 1);
    REQUIRE(chars > 0);
    TEST(no_file_is_a_build_for_cpus);
    TEST(named_file_must_be_there);
    TEST(what_is_wrong_with_a_file_is_said);
    TEST(module_without_a_device_says_why);
    TEST(file_is_found_from_the_program);
    TEST(without_a_driver_nothing_is_loaded);
    TEST(named_file_may_be_of_the_current_folder);
    return test_report();
}
