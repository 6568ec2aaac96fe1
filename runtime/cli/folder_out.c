#include "runtime/cli/folder_out.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>

td_status td_cli_parse_size(const char *option, const char *text, uint64_t *out_bytes) {
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1},     {"K", 1e3}, {"KB", 1e3}, {"M", 1e6},
                 {"MB", 1e6}, {"G", 1e9}, {"GB", 1e9}, {"T", 1e12}};
    char *end;
    double value = strtod(text, &end);
    for (size_t i = 0; end != text && i < sizeof units / sizeof *units; i++) {
        double bytes = value * units[i].bytes;
        if (strcasecmp(end, units[i].name) != 0 || !(bytes >= 1 && bytes < 1e18))
            continue;
        *out_bytes = (uint64_t)bytes;
        return TD_OK;
    }
    return td_fail(TD_ERR_USAGE, "%s must be a size like 5G or 500M, found \"%.40s\"", option,
                   text);
}

td_status td_cli_require_alone(const td_command *command, const td_comm *comm) {
    if (td_comm_size(comm) == 1)
        return TD_OK;
    return td_fail(TD_ERR_USAGE, "%s runs on one rank: start it without mpirun", command->name);
}

td_status td_cli_require_option(const td_command *command, const char *option, const char *value) {
    if (value && value[0])
        return TD_OK;
    return td_fail(TD_ERR_USAGE, "%s needs %s (tandem %s --help explains)", command->name, option,
                   command->name);
}

static td_status open_cpu(td_op_context *out) {
    *out = (td_op_context){.device = td_device_cpu()};
    TD_TRY(td_ops_check(&td_ops_cpu, &out->ops));
    return out->device->table->stream_create(out->device, &out->stream);
}

static void print_report(const char *output, const char *verb, const td_export_report *report) {
    struct rusage usage = {0};
    getrusage(RUSAGE_SELF, &usage);
    printf("%s: %lld weights %s; %lld tensors, %.3f GB in %d file%s; peak memory %.0f MB\n", output,
           (long long)report->n_changed, verb, (long long)report->n_tensors,
           (double)report->bytes / 1e9, report->n_files, report->n_files == 1 ? "" : "s",
           (double)usage.ru_maxrss * 1024 / 1e6);
}

static td_status write_folder(const td_folder_command *body, const void *options,
                              const char *output) {
    td_op_context context;
    td_export_report report;
    td_status status = open_cpu(&context);
    if (status == TD_OK)
        status = body->write(options, &context, &report);
    if (context.stream)
        context.device->table->stream_destroy(context.stream);
    if (status == TD_OK)
        print_report(output, body->verb, &report);
    return status;
}

td_status td_cli_run_folder_command(const td_command *command, const td_folder_command *body,
                                    td_comm *comm, int argc, char **argv, void *options,
                                    const char *const *output) {
    int help = 0;
    td_status status = body->parse(command, argc, argv, options, &help);
    if (help)
        return status;
    if (status == TD_OK)
        status = td_cli_require_alone(command, comm);
    TD_TRY(td_comm_agree(comm, status, "command line"));
    return write_folder(body, options, *output);
}
