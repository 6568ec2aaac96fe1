// A library that is there when a module is linked and is not found when the module is loaded.
int absent_function(void);
int absent_function(void) {
    return 0;
}
