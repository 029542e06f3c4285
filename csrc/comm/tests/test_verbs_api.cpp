// Our declarations against the library's own header, where that is installed.
#include <cstddef>

#include "comm/verbs_api.h"
#include "testing/test.h"

using namespace eager::comm;

TEST(verbs_api_opens_or_says_why) {
  std::string why;
  if (!verbs::Api::open(&why)) CHECK(why.find("libibverbs") != std::string::npos);
  CHECK(!verbs::Api::open(&why, "libno-such-verbs.so.1"));
  CHECK(why.find("libno-such-verbs.so.1") != std::string::npos);
  CHECK(!verbs::Api::open(&why, "libc.so.6"));  // a library, but not this one
  CHECK(why.find("lacks ibv_") != std::string::npos);
}

#if __has_include(<infiniband/verbs.h>)
#include <infiniband/verbs.h>

#define SIZE(type) static_assert(sizeof(verbs::type) == sizeof(::type), #type)
#define AT(type, member)                                                            \
  static_assert(offsetof(verbs::type, member) == offsetof(struct ::type, member) && \
                    sizeof(verbs::type::member) == sizeof(::type::member),          \
                #type "." #member)
#define SAME(ours, theirs) static_assert(int(verbs::ours) == int(::theirs), #ours)

static_assert(sizeof(verbs::ibv_gid) == sizeof(union ibv_gid));
SIZE(ibv_device);
AT(ibv_device, transport_type);
AT(ibv_device, name);
AT(ibv_device, dev_name);
AT(ibv_device, ibdev_path);

static_assert(sizeof(verbs::ibv_port_attr) == sizeof(struct ibv_port_attr));
AT(ibv_port_attr, state);
AT(ibv_port_attr, active_mtu);
AT(ibv_port_attr, gid_tbl_len);
AT(ibv_port_attr, max_msg_sz);
AT(ibv_port_attr, lid);
AT(ibv_port_attr, link_layer);
AT(ibv_port_attr, port_cap_flags2);

SIZE(ibv_device_attr);
AT(ibv_device_attr, max_qp_wr);
AT(ibv_device_attr, max_sge);
AT(ibv_device_attr, max_cqe);
AT(ibv_device_attr, max_pd);
AT(ibv_device_attr, max_pkeys);
AT(ibv_device_attr, phys_port_cnt);

SIZE(ibv_pd);
SIZE(ibv_mr);
AT(ibv_mr, addr);
AT(ibv_mr, lkey);
AT(ibv_mr, rkey);
SIZE(ibv_comp_channel);
AT(ibv_comp_channel, fd);
AT(ibv_cq, context);
AT(ibv_cq, channel);
AT(ibv_cq, cqe);

SIZE(ibv_wc);
AT(ibv_wc, status);
AT(ibv_wc, opcode);
AT(ibv_wc, vendor_err);
AT(ibv_wc, byte_len);
AT(ibv_wc, imm_data);
AT(ibv_wc, qp_num);
AT(ibv_wc, dlid_path_bits);

SIZE(ibv_qp_cap);
SIZE(ibv_qp_init_attr);
AT(ibv_qp_init_attr, cap);
AT(ibv_qp_init_attr, qp_type);
AT(ibv_qp_init_attr, sq_sig_all);
AT(ibv_qp, context);
AT(ibv_qp, send_cq);
AT(ibv_qp, handle);
AT(ibv_qp, qp_num);

SIZE(ibv_ah_attr);
AT(ibv_ah_attr, dlid);
AT(ibv_ah_attr, is_global);
AT(ibv_ah_attr, port_num);
static_assert(offsetof(verbs::ibv_ah_attr, grh.sgid_index) ==
              offsetof(struct ibv_ah_attr, grh.sgid_index));
static_assert(offsetof(verbs::ibv_ah_attr, grh.hop_limit) ==
              offsetof(struct ibv_ah_attr, grh.hop_limit));

SIZE(ibv_qp_attr);
AT(ibv_qp_attr, path_mtu);
AT(ibv_qp_attr, rq_psn);
AT(ibv_qp_attr, sq_psn);
AT(ibv_qp_attr, dest_qp_num);
AT(ibv_qp_attr, qp_access_flags);
AT(ibv_qp_attr, ah_attr);
AT(ibv_qp_attr, pkey_index);
AT(ibv_qp_attr, max_rd_atomic);
AT(ibv_qp_attr, max_dest_rd_atomic);
AT(ibv_qp_attr, min_rnr_timer);
AT(ibv_qp_attr, port_num);
AT(ibv_qp_attr, timeout);
AT(ibv_qp_attr, retry_cnt);
AT(ibv_qp_attr, rnr_retry);

SIZE(ibv_sge);
AT(ibv_sge, addr);
AT(ibv_sge, length);
AT(ibv_sge, lkey);
SIZE(ibv_send_wr);
AT(ibv_send_wr, next);
AT(ibv_send_wr, sg_list);
AT(ibv_send_wr, num_sge);
AT(ibv_send_wr, opcode);
AT(ibv_send_wr, send_flags);
AT(ibv_send_wr, imm_data);
static_assert(offsetof(verbs::ibv_send_wr, rdma.remote_addr) ==
              offsetof(struct ibv_send_wr, wr.rdma.remote_addr));
static_assert(offsetof(verbs::ibv_send_wr, rdma.rkey) ==
              offsetof(struct ibv_send_wr, wr.rdma.rkey));
SIZE(ibv_recv_wr);
AT(ibv_recv_wr, num_sge);
SIZE(ibv_async_event);
static_assert(offsetof(verbs::ibv_async_event, event_type) ==
              offsetof(struct ibv_async_event, event_type));

SIZE(ibv_context_ops);
AT(ibv_context_ops, poll_cq);
AT(ibv_context_ops, req_notify_cq);
AT(ibv_context_ops, post_send);
AT(ibv_context_ops, post_recv);
AT(ibv_context, device);
AT(ibv_context, ops);
AT(ibv_context, async_fd);
AT(ibv_context, num_comp_vectors);

SAME(kTransportInfiniBand, IBV_TRANSPORT_IB);
SAME(kPortActive, IBV_PORT_ACTIVE);
SAME(kLinkInfiniBand, IBV_LINK_LAYER_INFINIBAND);
SAME(kLinkEthernet, IBV_LINK_LAYER_ETHERNET);
SAME(kAccessLocalWrite, IBV_ACCESS_LOCAL_WRITE);
SAME(kAccessRemoteWrite, IBV_ACCESS_REMOTE_WRITE);
SAME(kWcSuccess, IBV_WC_SUCCESS);
SAME(kWcFlushed, IBV_WC_WR_FLUSH_ERR);
SAME(kWcRdmaWrite, IBV_WC_RDMA_WRITE);
SAME(kWcReceivedImmediate, IBV_WC_RECV_RDMA_WITH_IMM);
SAME(kQpReliable, IBV_QPT_RC);
SAME(kQpInit, IBV_QPS_INIT);
SAME(kQpReadyToReceive, IBV_QPS_RTR);
SAME(kQpReadyToSend, IBV_QPS_RTS);
SAME(kQpError, IBV_QPS_ERR);
SAME(kSetState, IBV_QP_STATE);
SAME(kSetAccess, IBV_QP_ACCESS_FLAGS);
SAME(kSetPkeyIndex, IBV_QP_PKEY_INDEX);
SAME(kSetPort, IBV_QP_PORT);
SAME(kSetAddress, IBV_QP_AV);
SAME(kSetMtu, IBV_QP_PATH_MTU);
SAME(kSetTimeout, IBV_QP_TIMEOUT);
SAME(kSetRetries, IBV_QP_RETRY_CNT);
SAME(kSetReceiverRetries, IBV_QP_RNR_RETRY);
SAME(kSetReceivePsn, IBV_QP_RQ_PSN);
SAME(kSetMaxReads, IBV_QP_MAX_QP_RD_ATOMIC);
SAME(kSetReceiverTimer, IBV_QP_MIN_RNR_TIMER);
SAME(kSetSendPsn, IBV_QP_SQ_PSN);
SAME(kSetMaxPeerReads, IBV_QP_MAX_DEST_RD_ATOMIC);
SAME(kSetPeer, IBV_QP_DEST_QPN);
SAME(kOpWrite, IBV_WR_RDMA_WRITE);
SAME(kOpWriteWithImmediate, IBV_WR_RDMA_WRITE_WITH_IMM);
SAME(kSendSignaled, IBV_SEND_SIGNALED);
SAME(kSendInline, IBV_SEND_INLINE);
SAME(kEventCqError, IBV_EVENT_CQ_ERR);
SAME(kEventDeviceFatal, IBV_EVENT_DEVICE_FATAL);
#endif
