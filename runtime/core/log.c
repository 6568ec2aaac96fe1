#include "runtime/core/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { LINE_BYTES = 4096 };

static struct {
    pthread_mutex_t lock;
    td_log_level level;
    int rank, size;
    int progress_open; // a progress line stands unfinished on the terminal
} logger = {.lock = PTHREAD_MUTEX_INITIALIZER, .level = TD_LOG_INFO, .rank = -1, .size = 1};

static const char *const level_prefix[] = {
    [TD_LOG_ERROR] = "error: ",
    [TD_LOG_WARN] = "warning: ",
    [TD_LOG_INFO] = "",
    [TD_LOG_DEBUG] = "debug: ",
};

void td_log_init(td_log_level level, int rank, int size) {
    pthread_mutex_lock(&logger.lock);
    logger.level = level;
    logger.rank = rank;
    logger.size = size;
    pthread_mutex_unlock(&logger.lock);
}

td_log_level td_log_get_level(void) {
    pthread_mutex_lock(&logger.lock);
    td_log_level level = logger.level;
    pthread_mutex_unlock(&logger.lock);
    return level;
}

// Messages quote names and keys from files: a control character in them must neither break the line
// nor reach the terminal.
static void replace_control_characters(char *text) {
    for (unsigned char *c = (unsigned char *)text; *c; c++)
        if (*c < 0x20 || *c == 0x7f)
            *c = ' ';
}

static void format_line(char *line, size_t room, const char *prefix, const char *format,
                        va_list arguments) {
    int used = 0;
    if (logger.size > 1 && logger.rank > 0)
        used = snprintf(line, room, "[%d] ", logger.rank);
    used += snprintf(line + used, room - (size_t)used, "%s", prefix);
    vsnprintf(line + used, room - (size_t)used, format, arguments);
    replace_control_characters(line);
}

// One write per line, so that lines of several ranks on one terminal do not mix.
static void write_out(const char *text, size_t bytes) {
    while (bytes > 0) {
        ssize_t written = write(STDERR_FILENO, text, bytes);
        if (written <= 0)
            return;
        text += written;
        bytes -= (size_t)written;
    }
}

static int is_printed(td_log_level level) {
    return level <= logger.level && (level != TD_LOG_INFO || logger.rank <= 0);
}

void td_log(td_log_level level, const char *format, ...) {
    char line[LINE_BYTES + 2];
    char *text = line + 1;
    pthread_mutex_lock(&logger.lock);
    if (is_printed(level)) {
        va_list arguments;
        va_start(arguments, format);
        format_line(text, LINE_BYTES, level_prefix[level], format, arguments);
        va_end(arguments);
        size_t bytes = strlen(text);
        text[bytes++] = '\n';
        line[0] = '\n';
        if (logger.progress_open)
            write_out(line, bytes + 1);
        else
            write_out(text, bytes);
        logger.progress_open = 0;
    }
    pthread_mutex_unlock(&logger.lock);
}

// A line wider than the terminal would wrap, and then "\r" would no longer reach its beginning.
// Cuts between UTF-8 characters, counting each as one column.
static void cut_to_terminal(char *text) {
    struct winsize window;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) != 0 || window.ws_col < 2)
        return;
    int columns = 0;
    for (char *c = text; *c; c++) {
        int starts_character = ((unsigned char)*c & 0xc0) != 0x80;
        if (starts_character && ++columns == window.ws_col) {
            *c = '\0';
            return;
        }
    }
}

static void rewrite_in_place(char *text, int final) {
    char line[LINE_BYTES + 16];
    cut_to_terminal(text);
    int bytes = snprintf(line, sizeof line, "\r%s\x1b[K%s", text, final ? "\n" : "");
    write_out(line, (size_t)bytes);
    logger.progress_open = !final;
}

void td_log_progress(int final, const char *format, ...) {
    char text[LINE_BYTES + 2];
    pthread_mutex_lock(&logger.lock);
    if (is_printed(TD_LOG_INFO)) {
        va_list arguments;
        va_start(arguments, format);
        format_line(text, LINE_BYTES, "", format, arguments);
        va_end(arguments);
        if (isatty(STDERR_FILENO)) {
            rewrite_in_place(text, final);
        } else {
            size_t bytes = strlen(text);
            text[bytes++] = '\n';
            write_out(text, bytes);
        }
    }
    pthread_mutex_unlock(&logger.lock);
}
