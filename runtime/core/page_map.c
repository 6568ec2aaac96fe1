// The arithmetic half of pager.h: which elements a page has and who owns it.
#include "runtime/core/pager.h"

td_status td_page_map_init(td_page_map *map, int64_t n_elements, int64_t page_elements, int size) {
    if (n_elements < 0 || page_elements < 1 || size < 1)
        return td_fail(TD_ERR_INTERNAL,
                       "page map: %lld elements in pages of %lld on %d ranks is not possible",
                       (long long)n_elements, (long long)page_elements, size);
    int64_t n_pages = n_elements / page_elements + (n_elements % page_elements != 0);
    *map = (td_page_map){n_elements, page_elements, n_pages, size};
    return TD_OK;
}

td_page_span td_page_map_span(const td_page_map *map, int64_t page) {
    int64_t begin = page * map->page_elements;
    int64_t left = map->n_elements - begin;
    return (td_page_span){begin, left < map->page_elements ? left : map->page_elements};
}

int td_page_map_owner(const td_page_map *map, int64_t page) {
    return (int)(page % map->size);
}

int64_t td_page_map_owned_count(const td_page_map *map, int rank) {
    return map->n_pages / map->size + (rank < map->n_pages % map->size);
}
