// The part of the libibverbs interface that is used here, declared anew so that building needs no
// RDMA headers, and a table of its functions, opened at run time.
//
// Layouts and numbers are the stable ABI of rdma-core on Linux (symbol versions IBVERBS_1.1 and
// later).  tests/test_verbs_api.cpp compares them with <infiniband/verbs.h> where that is there.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace eager::comm::verbs {

struct ibv_context;

union ibv_gid {
  uint8_t raw[16];
  uint64_t words[2];  // subnet prefix and interface id, big-endian
};

enum { kTransportInfiniBand = 0 };  // of ibv_device::transport_type; RoCE has it too

struct ibv_device {
  void* ops[2];
  int node_type;
  int transport_type;
  char name[64];      // of the kernel's device: "mlx5_0"
  char dev_name[64];  // "uverbs0"
  char dev_path[256];
  char ibdev_path[256];  // in sysfs
};

enum { kPortActive = 4 };
enum { kLinkInfiniBand = 1, kLinkEthernet = 2 };  // 0, unspecified, is InfiniBand

struct ibv_port_attr {
  int state;
  int max_mtu;  // 1: 256 bytes, ..., 5: 4096
  int active_mtu;
  int gid_tbl_len;
  uint32_t port_cap_flags;
  uint32_t max_msg_sz;
  uint32_t bad_pkey_cntr;
  uint32_t qkey_viol_cntr;
  uint16_t pkey_tbl_len;
  uint16_t lid;
  uint16_t sm_lid;
  uint8_t lmc;
  uint8_t max_vl_num;
  uint8_t sm_sl;
  uint8_t subnet_timeout;
  uint8_t init_type_reply;
  uint8_t active_width;
  uint8_t active_speed;
  uint8_t phys_state;
  uint8_t link_layer;
  uint8_t flags;
  uint16_t port_cap_flags2;
};

struct ibv_device_attr {
  char fw_ver[64];
  uint64_t node_guid;
  uint64_t sys_image_guid;
  uint64_t max_mr_size;
  uint64_t page_size_cap;
  uint32_t vendor_id;
  uint32_t vendor_part_id;
  uint32_t hw_ver;
  int max_qp;
  int max_qp_wr;
  unsigned device_cap_flags;
  int max_sge;
  int max_sge_rd;
  int max_cq;
  int max_cqe;
  int max_mr;
  int max_pd;
  int others[20];  // of atomics, multicast, shared queues
  uint16_t max_pkeys;
  uint8_t local_ca_ack_delay;
  uint8_t phys_port_cnt;
};

struct ibv_pd {
  ibv_context* context;
  uint32_t handle;
};

enum { kAccessLocalWrite = 1, kAccessRemoteWrite = 2 };

struct ibv_mr {
  ibv_context* context;
  ibv_pd* pd;
  void* addr;
  size_t length;
  uint32_t handle;
  uint32_t lkey;
  uint32_t rkey;
};

struct ibv_comp_channel {
  ibv_context* context;
  int fd;
  int refcnt;
};

// Of cq and qp only what comes first; the library allocates them.
struct ibv_cq {
  ibv_context* context;
  ibv_comp_channel* channel;
  void* cq_context;
  uint32_t handle;
  int cqe;
};

enum { kWcSuccess = 0, kWcFlushed = 5 };
enum { kWcRdmaWrite = 1, kWcReceivedImmediate = 129 };

struct ibv_wc {
  uint64_t wr_id;
  int status;
  int opcode;  // undefined when status is an error
  uint32_t vendor_err;
  uint32_t byte_len;
  uint32_t imm_data;  // big-endian
  uint32_t qp_num;
  uint32_t src_qp;
  unsigned wc_flags;
  uint16_t pkey_index;
  uint16_t slid;
  uint8_t sl;
  uint8_t dlid_path_bits;
};

struct ibv_qp_cap {
  uint32_t max_send_wr;
  uint32_t max_recv_wr;
  uint32_t max_send_sge;
  uint32_t max_recv_sge;
  uint32_t max_inline_data;
};

enum { kQpReliable = 2 };

struct ibv_qp_init_attr {
  void* qp_context;
  ibv_cq* send_cq;
  ibv_cq* recv_cq;
  void* srq;
  ibv_qp_cap cap;
  int qp_type;
  int sq_sig_all;
};

struct ibv_qp {
  ibv_context* context;
  void* qp_context;
  ibv_pd* pd;
  ibv_cq* send_cq;
  ibv_cq* recv_cq;
  void* srq;
  uint32_t handle;
  uint32_t qp_num;
};

struct ibv_ah_attr {
  struct {
    ibv_gid dgid;
    uint32_t flow_label;
    uint8_t sgid_index;
    uint8_t hop_limit;
    uint8_t traffic_class;
  } grh;
  uint16_t dlid;
  uint8_t sl;
  uint8_t src_path_bits;
  uint8_t static_rate;
  uint8_t is_global;
  uint8_t port_num;
};

enum { kQpInit = 1, kQpReadyToReceive = 2, kQpReadyToSend = 3, kQpError = 6 };

struct ibv_qp_attr {
  int qp_state;
  int cur_qp_state;
  int path_mtu;
  int path_mig_state;
  uint32_t qkey;
  uint32_t rq_psn;
  uint32_t sq_psn;
  uint32_t dest_qp_num;
  unsigned qp_access_flags;
  ibv_qp_cap cap;
  ibv_ah_attr ah_attr;
  ibv_ah_attr alt_ah_attr;
  uint16_t pkey_index;
  uint16_t alt_pkey_index;
  uint8_t en_sqd_async_notify;
  uint8_t sq_draining;
  uint8_t max_rd_atomic;
  uint8_t max_dest_rd_atomic;
  uint8_t min_rnr_timer;
  uint8_t port_num;
  uint8_t timeout;
  uint8_t retry_cnt;
  uint8_t rnr_retry;
  uint8_t alt_port_num;
  uint8_t alt_timeout;
  uint32_t rate_limit;
};

// Which members modify_qp reads.
enum {
  kSetState = 1 << 0,
  kSetAccess = 1 << 3,
  kSetPkeyIndex = 1 << 4,
  kSetPort = 1 << 5,
  kSetAddress = 1 << 7,
  kSetMtu = 1 << 8,
  kSetTimeout = 1 << 9,
  kSetRetries = 1 << 10,
  kSetReceiverRetries = 1 << 11,
  kSetReceivePsn = 1 << 12,
  kSetMaxReads = 1 << 13,
  kSetReceiverTimer = 1 << 15,
  kSetSendPsn = 1 << 16,
  kSetMaxPeerReads = 1 << 17,
  kSetPeer = 1 << 20,
};

struct ibv_sge {
  uint64_t addr;
  uint32_t length;
  uint32_t lkey;
};

enum { kOpWrite = 0, kOpWriteWithImmediate = 1 };
enum { kSendSignaled = 1 << 1, kSendInline = 1 << 3 };

struct ibv_send_wr {
  uint64_t wr_id;
  ibv_send_wr* next;
  ibv_sge* sg_list;
  int num_sge;
  int opcode;
  unsigned send_flags;
  uint32_t imm_data;  // big-endian
  struct {
    uint64_t remote_addr;
    uint32_t rkey;
    uint64_t unused[2];  // the size of the union that the library has here
  } rdma;
  uint64_t others[7];  // of other kinds of work
};

struct ibv_recv_wr {
  uint64_t wr_id;
  ibv_recv_wr* next;
  ibv_sge* sg_list;
  int num_sge;
};

struct ibv_async_event {
  union {
    ibv_cq* cq;
    ibv_qp* qp;
    int port_num;
  } element;
  int event_type;
};

enum {
  kEventCqError = 0,
  kEventDeviceFatal = 8,
};

// Drivers put their functions here; the library's headers call them inline.
struct ibv_context_ops {
  void* before_poll[11];
  int (*poll_cq)(ibv_cq*, int n, ibv_wc*);
  int (*req_notify_cq)(ibv_cq*, int solicited_only);
  void* before_post[12];
  int (*post_send)(ibv_qp*, ibv_send_wr*, ibv_send_wr** bad);
  int (*post_recv)(ibv_qp*, ibv_recv_wr*, ibv_recv_wr** bad);
  void* after_post[5];
};

struct ibv_context {
  ibv_device* device;
  ibv_context_ops ops;
  int cmd_fd;
  int async_fd;
  int num_comp_vectors;
};

// The functions, with their C names without the prefix "ibv_".  Those that return int give 0 or
// an errno value; those that return a pointer give null and set errno.
class Api {
 public:
  // Opens `library`, by default "libibverbs.so.1".  Null and `why` when it is not there or lacks
  // a function.  The library stays loaded until the process ends: drivers do not survive less.
  static std::shared_ptr<const Api> open(std::string* why, const char* library = nullptr);

  int (*fork_init)();
  ibv_device** (*get_device_list)(int* n);
  void (*free_device_list)(ibv_device**);
  ibv_context* (*open_device)(ibv_device*);
  int (*close_device)(ibv_context*);
  int (*query_device)(ibv_context*, ibv_device_attr*);
  int (*query_port)(ibv_context*, uint8_t port, ibv_port_attr*);  // zero the attributes first
  int (*query_gid)(ibv_context*, uint8_t port, int index, ibv_gid*);
  ibv_pd* (*alloc_pd)(ibv_context*);
  int (*dealloc_pd)(ibv_pd*);
  ibv_mr* (*reg_mr)(ibv_pd*, void*, size_t, int access);
  ibv_mr* (*reg_dmabuf_mr)(ibv_pd*, uint64_t offset, size_t, uint64_t iova, int fd,
                           int access);  // null in old libraries
  int (*dereg_mr)(ibv_mr*);
  ibv_comp_channel* (*create_comp_channel)(ibv_context*);
  int (*destroy_comp_channel)(ibv_comp_channel*);
  ibv_cq* (*create_cq)(ibv_context*, int cqe, void*, ibv_comp_channel*, int vector);
  int (*destroy_cq)(ibv_cq*);
  int (*get_cq_event)(ibv_comp_channel*, ibv_cq**, void**);
  void (*ack_cq_events)(ibv_cq*, unsigned n);
  ibv_qp* (*create_qp)(ibv_pd*, ibv_qp_init_attr*);
  int (*modify_qp)(ibv_qp*, ibv_qp_attr*, int mask);
  int (*destroy_qp)(ibv_qp*);
  int (*get_async_event)(ibv_context*, ibv_async_event*);
  void (*ack_async_event)(ibv_async_event*);
  const char* (*wc_status_str)(int);
  const char* (*event_type_str)(int);
};

inline int poll_cq(ibv_cq* cq, int n, ibv_wc* wc) { return cq->context->ops.poll_cq(cq, n, wc); }
inline int req_notify_cq(ibv_cq* cq) { return cq->context->ops.req_notify_cq(cq, 0); }
inline int post_send(ibv_qp* qp, ibv_send_wr* wr, ibv_send_wr** bad) {
  return qp->context->ops.post_send(qp, wr, bad);
}
inline int post_recv(ibv_qp* qp, ibv_recv_wr* wr, ibv_recv_wr** bad) {
  return qp->context->ops.post_recv(qp, wr, bad);
}

}  // namespace eager::comm::verbs
