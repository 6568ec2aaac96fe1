// Messages to a person, on standard error. One line each; ranks other than 0 are prefixed "[rank]
// ". Thread-safe. Results that a user may pipe go to standard output and not through here.
#ifndef TANDEM_CORE_LOG_H
#define TANDEM_CORE_LOG_H

typedef enum td_log_level {
    TD_LOG_ERROR,
    TD_LOG_WARN,
    TD_LOG_INFO,
    TD_LOG_DEBUG,
} td_log_level;

// `rank` < 0 or `size` < 2: no prefix. TD_LOG_INFO is printed by rank 0 only; warnings and errors
// by every rank.
void td_log_init(td_log_level level, int rank, int size);
td_log_level td_log_get_level(void);

void td_log(td_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define td_error(...) td_log(TD_LOG_ERROR, __VA_ARGS__)
#define td_warn(...)  td_log(TD_LOG_WARN, __VA_ARGS__)
#define td_info(...)  td_log(TD_LOG_INFO, __VA_ARGS__)
#define td_debug(...) td_log(TD_LOG_DEBUG, __VA_ARGS__)

// One line rewritten in place when standard error is a terminal, a plain line otherwise. Rank 0
// only. The next td_log() ends it. `final` leaves it standing.
void td_log_progress(int final, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
