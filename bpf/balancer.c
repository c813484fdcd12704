// SPDX-License-Identifier: GPL-2.0-only
/*
 * A layer-4 load balancer in XDP.
 *
 * A packet that is neither for a VIP nor a reply of an endpoint is never touched: the program looks up the VIP
 * before it drops anything. Features are compiled in by -D, and cost nothing otherwise (features.h): the modes NAT,
 * FULLNAT, DSR_L2 and DSR_L3, the protocols UDP and SCTP (TCP always is there), IPV6 and, for NAT and FULLNAT over it, NAT6
 * and FULLNAT6, the algorithms ROUND_ROBIN, SOURCE_HASH, MAGLEV and LEAST_CONNECTIONS, REJECT for undefined traffic, ECHO
 * for pings of VIPs, and with it FORWARD_ECHO for pings that endpoints answer, GATEWAY for interfaces with a next hop of
 * their own, VLAN for trunks, CHECKS of endpoints through VIPs, ALLOWED_SOURCES for services that not everybody may use,
 * STATELESS for services of NAT that remember nothing, AFFINITY for those that remember which endpoint a client had, and
 * FRAGMENTS where they follow the first one of their packet.
 *
 * The way of a packet: its headers are read (packet.h); its destination is found among the VIPs and services (vip.h),
 * which may turn its client away (allow.h); its mode chooses an endpoint (dsr.h, nat.h) by the ring (schedule.h), or by
 * what is remembered; and it leaves (forward.h), or its sender gets an answer (echo.h, reject.h, icmp_error.h).
 *
 * NAT is a program of its own, a stage (of SCTP another one), made of the same text with a feature AS_… : see stage.h. So is
 * what places fragments (fragment.h).
 *
 * BCC 0.26 rewrites map accesses in the main file only, so the loader pastes the headers in here before BCC sees
 * the text. The headers stand in the order in which they need each other and include nothing themselves.
 */

#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/icmpv6.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#include "features.h"
#include "maps.h"
#include "explain.h"
#include "count.h"
#include "checksum.h"
#include "arithmetic.h"
#include "address.h"
#include "packet.h"
#include "crc32c.h"
#include "vlan.h"
#include "header.h"
#include "vip.h"
#include "filter.h"
#include "load.h"
#include "schedule.h"
#include "allow.h"
#include "remember.h"
#include "transition.h"
#include "affinity.h"
#include "endpoint.h"
#include "gateway.h"
#include "neighbour.h"
#include "next_hop.h"
#include "icmp_error.h"
#include "echo.h"
#include "reject.h"
#include "tunnel.h"
#include "tunnel_error.h"
#include "forward.h"
#include "dsr.h"
#include "check.h"
#include "stage.h"
#include "fragment.h"
#include "connection.h"
#include "association.h"
#include "stateless.h"
#include "nat.h"
#include "ports.h"
#include "returns.h"
#include "fullnat.h"
#include "watch.h"

/*
 * A packet that no service and no connection claims; `reason` is VERDICT_UNDEFINED. Or one that its service turns away, for
 * another reason: then it is no matter of the kernel.
 */
static __always_inline int leftover(struct xdp_md *ctx, struct packet *packet, enum packet_kind kind, enum verdict reason)
{
	struct vip *vip = find_vip(packet);

	if (!vip && !IS_STAGE && kind == PACKET_FRAGMENT && may_be_reply(packet, kind))
		return hand_over_fragment(ctx, packet);
	if (!vip)
		return XDP_PASS;
	if (HAS(ALLOWED_SOURCES) && reason != VERDICT_UNDEFINED) {
		if (!HAS(REJECT) || vip->undefined != UNDEFINED_REJECT || is_icmp(packet))
			return drop(reason);
		return reject(ctx, packet, kind, reason);
	}

	/* The VIP is one of the node's own addresses, so the kernel answers pings, takes ICMP errors, finds neighbours. */
	if (is_icmp(packet) && is_for_kernel(vip, kind))
		return XDP_PASS;

	switch (kind) {
	case PACKET_MALFORMED:
		return drop(VERDICT_MALFORMED);
	case PACKET_OPTIONS:
		return drop(VERDICT_IP_OPTIONS);
	case PACKET_FRAGMENT:
		return HAS(FRAGMENTS) && !IS_STAGE ? hand_over_fragment(ctx, packet) : drop(VERDICT_FRAGMENT);
	default:
		break;
	}
	if (vip->undefined == UNDEFINED_PASS)
		return XDP_PASS;
	if (HAS(REJECT) && vip->undefined == UNDEFINED_REJECT)
		return reject(ctx, packet, kind, VERDICT_UNDEFINED);
	return drop(VERDICT_UNDEFINED);
}

/* The two ends of the flow that a packet belongs to, as its requests have them. */
struct ends {
	const void *vip;
	__be16 port;
	struct client client;
};

static __always_inline struct ends ends_of(const struct packet *packet, enum packet_kind kind)
{
	struct ends ends = { .vip = destination_of(packet), .client.words = source_of(packet) };

	if (kind == PACKET_ICMP_ERROR) {
		/*
		 * An error about a packet that an endpoint sent to a client. The quoted packet has the addresses of a
		 * request the other way round, so the error goes to the endpoint of that client's requests.
		 */
		ends.vip = is_ipv6(packet) ? (void *)&packet->quoted6->saddr : (void *)&packet->quoted->saddr;
		ends.port = packet->ports->source;
		ends.client.words = is_ipv6(packet) ? (void *)&packet->quoted6->daddr : (void *)&packet->quoted->daddr;
		ends.client.port = bpf_ntohs(packet->ports->destination);
	} else if (kind != PACKET_ECHO) {
		ends.port = packet->ports->destination;
		ends.client.port = bpf_ntohs(packet->ports->source);
	}
	ends.client.address = fold_address(ends.client.words, is_ipv6(packet));
	ends.client.protocol = packet->protocol;
	ends.client.is_ipv6 = is_ipv6(packet);
	return ends;
}

/*
 * Look for the service that a packet is for; its mode is 0 if that is none. Returns whether the service turns the client
 * away.
 */
static __always_inline bool seek_service(const struct packet *packet, const struct ends *ends, struct service *service)
{
	if (!find_service(ends->vip, is_ipv6(packet), ends->port, packet->protocol, service))
		return false;
	return HAS(ALLOWED_SOURCES) && !is_allowed(service, &ends->client);
}

/* Find out who waits for a packet that belongs to a flow, or may: the endpoint of a service, or a client of NAT. */
static __always_inline int choose(struct xdp_md *ctx, struct packet *packet, enum packet_kind kind, bool is_for_vip,
				  struct forwarding *it)
{
	struct ends ends = ends_of(packet, kind);
	bool may_translate = can_translate(packet, kind), is_refused = false;
	struct service service = {};

	if (is_for_vip && (HAS_DSR || may_translate))
		is_refused = seek_service(packet, &ends, &service);
	if (HAS(ALLOWED_SOURCES) && is_refused) {
		it->verdict = VERDICT_NOT_ALLOWED;
		if (is_dsr(&service) || !may_translate || kind != PACKET_TRANSPORT)
			return TURNED_AWAY;
	}
	if (is_dsr(&service))
		return dsr_request(packet, kind, &service, &ends.client, it);
	if (kind == PACKET_ECHO)
		return drop(VERDICT_NO_ENDPOINT);
	if (!may_translate)
		return NOBODYS;
	if (HAS(FULLNAT) && (service.mode == MODE_FULLNAT || (!service.mode && is_for_source(packet, is_for_vip))))
		return hand_over(ctx, packet, &service, is_refused, true);
	if (!HAS(NAT) || (is_ipv6(packet) && !HAS(NAT6)))
		return NOBODYS;
	return hand_over(ctx, packet, &service, is_refused, false);
}

/* What becomes of a packet without a tag. */
static __always_inline int balance(struct xdp_md *ctx, struct packet *packet)
{
	enum packet_kind kind = parse_network(ctx, packet);
	enum verdict reason = VERDICT_UNDEFINED;
	struct prober *prober = NULL;
	bool is_for_vip = false;

	if (kind == PACKET_NOT_IP || !may_concern_us(packet))
		return XDP_PASS;
	if (kind == PACKET_OTHER)
		kind = parse_rest(ctx, packet);
	if (kind == PACKET_NOT_IP)
		return XDP_PASS;	/* which can't be; only the verifier doesn't know */
	if (HAS(CHECKS) && HAS_DSR) {
		prober = find_prober();
		if (prober && is_for_prober(ctx, packet, prober))
			return take_check(packet, prober);
		if (prober && ctx->ingress_ifindex != prober->ifindex)
			prober = NULL;
		if (prober) {
			/* On the way to the endpoint all are alike. */
			if (HAS(EXPLAIN) || kind == PACKET_MALFORMED || kind == PACKET_OPTIONS || kind == PACKET_FRAGMENT)
				return XDP_DROP;
			kind = forget_protocol(ctx, packet);
			if (kind == PACKET_NOT_IP)
				return XDP_DROP;
			goto claimed;
		}
	}
	if (HAS(DSR_L3) && kind == PACKET_ICMP_ERROR && is_about_tunnel(packet))
		return relay_error(ctx, packet);
	is_for_vip = may_be_for_vip(packet);
	if (!is_for_vip && !may_be_reply(packet, kind))
		return XDP_PASS;

	if (kind == PACKET_ECHO) {
		struct vip *vip = find_vip(packet);

		if (!vip)
			return XDP_PASS;
		if (vip->echo == ECHO_REPLY)
			return reply_echo(packet);
		if (vip->echo != ECHO_ENDPOINT || !HAS(FORWARD_ECHO) || !HAS_DSR)
			return drop(VERDICT_ECHO_DROPPED);
	}
	if (kind == PACKET_TRANSPORT || kind == PACKET_ICMP_ERROR || kind == PACKET_ECHO) {
		struct forwarding it;
		int action;
claimed:
		it = (struct forwarding){};
		if (HAS(CHECKS) && HAS_DSR && prober)
			action = send_check(packet, prober, &it);
		else
			action = choose(ctx, packet, kind, is_for_vip, &it);
		if (action == GO_ON)
			return forward(ctx, packet, &it);
		if (HAS(ALLOWED_SOURCES) && action == TURNED_AWAY)
			reason = it.verdict;
		else if (action != NOBODYS)
			return action;
	}
	/* Asked once more, so that the verifier may forget the answer meanwhile. */
	if (may_be_for_vip(packet))
		return leftover(ctx, packet, kind, reason);
	return HAS(FRAGMENTS) && HAS(NAT) && kind == PACKET_FRAGMENT ? hand_over_fragment(ctx, packet) : XDP_PASS;
}

/* Take a tag off and note it; false if the packet is in no VLAN of the node. */
static __always_inline bool untag(struct xdp_md *ctx, struct packet *packet)
{
	if (HAS(VLAN))
		return take_off_tag(ctx, packet);
	take_off_priority(ctx);
	return true;
}

/* In a stage: what becomes of a packet that the main program handed over, or that another program asks about. */
static __always_inline int balance_handed(struct xdp_md *ctx, struct packet *packet)
{
	struct forwarding it = {};
	struct service service = {};
	u32 row = 0;
	struct handed *handed = handed_over.lookup(&row);
	bool is_from_main;
	enum packet_kind kind;
	int action = NOBODYS;

	if (!handed)
		return drop(VERDICT_STAGE_MISSING);
	is_from_main = handed->is_from_main;
	handed->is_from_main = 0;
	if (is_from_main) {
		packet->ingress = handed->ingress;
		packet->tci = handed->tci;
	} else if (!untag(ctx, packet)) {
		return XDP_PASS;
	}
	kind = parse(ctx, packet);
	if (HAS(AS_FIRST))
		kind = kind == PACKET_FRAGMENT ? forget_protocol(ctx, packet) : PACKET_NOT_IP;
	if (kind == PACKET_NOT_IP)
		return XDP_PASS;
	if (can_translate(packet, kind)) {
		if (!is_from_main) {
			struct ends ends = ends_of(packet, kind);

			handed->is_refused = seek_service(packet, &ends, &service);
			*service_handed(handed) = service;
		}
		it.is_asked = HAS(AS_FIRST) || !is_from_main;
		if (HAS(AS_FULLNAT))
			action = fullnat(ctx, packet, kind, handed, &it);
		else
			action = nat(ctx, packet, kind, handed, &it);
		if (HAS(AS_FIRST) && action == GO_ON)
			note_translated(packet, handed, &it);
		if (action == GO_ON)
			return forward(ctx, packet, &it);
		if (action != NOBODYS && action != TURNED_AWAY)
			return action;
	}
	if (HAS(AS_FIRST))
		return action == TURNED_AWAY ? drop(VERDICT_NOT_ALLOWED) : unknown_part(packet);
	if (!may_be_for_vip(packet))
		return XDP_PASS;
	return leftover(ctx, packet, kind, action == TURNED_AWAY ? VERDICT_NOT_ALLOWED : VERDICT_UNDEFINED);
}

/* What becomes of a packet as it came in. */
static __always_inline int handle(struct xdp_md *ctx)
{
	struct packet packet = { .ingress = ctx->ingress_ifindex };
	int action;

	if (HAS(AS_LENDER))
		return lend_port(ctx);
	if (HAS(AS_SWEEPER))
		return sweep_translated();
	if (IS_STAGE) {
		action = HAS(AS_FRAGMENTS) ? place_fragment(ctx, &packet) : balance_handed(ctx, &packet);
	} else {
		NOTE(bytes, ctx->data_end - ctx->data);
		if (!untag(ctx, &packet))
			return XDP_PASS;
		action = balance(ctx, &packet);
	}
	if (HAS(VLAN) && packet.tci & TAGGED && action != XDP_DROP && !put_on_tag(ctx, packet.tci))
		return drop(VERDICT_NO_HEADROOM);
	return action;
}

int lbctl_balance(struct xdp_md *ctx)
{
	int action;

	if (!HAS(WATCHING)) {
		if (!IS_STAGE && (HAS_TRANSLATION || HAS_DSR))
			watchers.call(ctx, 0);	/* comes back only if nobody watches */
		return handle(ctx);
	}
	if (!IS_STAGE)
		begin_watch(ctx);
	action = handle(ctx);
	end_watch(ctx, action);
	return action;
}
