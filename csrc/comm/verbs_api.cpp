#include "verbs_api.h"

#include <dlfcn.h>

namespace eager::comm::verbs {

namespace {

// Functions that changed since the first version keep both under one name: the version counts.
template <class F>
bool find(void* library, const char* name, const char* version, F*& function, std::string* why) {
  function = reinterpret_cast<F*>(dlvsym(library, name, version));
  if (!function && why) *why = std::string("libibverbs lacks ") + name + "@" + version;
  return function;
}

}  // namespace

std::shared_ptr<const Api> Api::open(std::string* why, const char* name) {
  void* library = dlopen(name ? name : "libibverbs.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!library) {
    const char* problem = dlerror();
    *why = std::string("cannot open ") + (problem ? problem : "libibverbs.so.1");
    return nullptr;
  }
  auto api = std::make_shared<Api>();
  const char* v1_0 = "IBVERBS_1.0";
  const char* v1_1 = "IBVERBS_1.1";
  bool all = find(library, "ibv_fork_init", v1_1, api->fork_init, why) &&
             find(library, "ibv_get_device_list", v1_1, api->get_device_list, why) &&
             find(library, "ibv_free_device_list", v1_1, api->free_device_list, why) &&
             find(library, "ibv_open_device", v1_1, api->open_device, why) &&
             find(library, "ibv_close_device", v1_1, api->close_device, why) &&
             find(library, "ibv_query_device", v1_1, api->query_device, why) &&
             find(library, "ibv_query_port", v1_1, api->query_port, why) &&
             find(library, "ibv_query_gid", v1_1, api->query_gid, why) &&
             find(library, "ibv_alloc_pd", v1_1, api->alloc_pd, why) &&
             find(library, "ibv_dealloc_pd", v1_1, api->dealloc_pd, why) &&
             find(library, "ibv_reg_mr", v1_1, api->reg_mr, why) &&
             find(library, "ibv_dereg_mr", v1_1, api->dereg_mr, why) &&
             find(library, "ibv_create_comp_channel", v1_0, api->create_comp_channel, why) &&
             find(library, "ibv_destroy_comp_channel", v1_0, api->destroy_comp_channel, why) &&
             find(library, "ibv_create_cq", v1_1, api->create_cq, why) &&
             find(library, "ibv_destroy_cq", v1_1, api->destroy_cq, why) &&
             find(library, "ibv_get_cq_event", v1_1, api->get_cq_event, why) &&
             find(library, "ibv_ack_cq_events", v1_1, api->ack_cq_events, why) &&
             find(library, "ibv_create_qp", v1_1, api->create_qp, why) &&
             find(library, "ibv_modify_qp", v1_1, api->modify_qp, why) &&
             find(library, "ibv_destroy_qp", v1_1, api->destroy_qp, why) &&
             find(library, "ibv_get_async_event", v1_1, api->get_async_event, why) &&
             find(library, "ibv_ack_async_event", v1_1, api->ack_async_event, why) &&
             find(library, "ibv_wc_status_str", v1_1, api->wc_status_str, why) &&
             find(library, "ibv_event_type_str", v1_1, api->event_type_str, why);
  find(library, "ibv_reg_dmabuf_mr", "IBVERBS_1.12", api->reg_dmabuf_mr, nullptr);
  dlclose(library);  // it stays: RTLD_NODELETE
  if (!all) return nullptr;
  // Keeps registered pages with the parent when it forks.  Kernels that do so by themselves make
  // this free.  It must come before any other use of the library; too late is not an error here.
  api->fork_init();
  return api;
}

}  // namespace eager::comm::verbs
