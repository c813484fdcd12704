// SPDX-License-Identifier: GPL-2.0-only
/* Counters. Each CPU has its own, and XDP does not migrate while it runs, so plain additions do. */

/* Count a packet under its verdict. Returns `action`, for the program to return. */
static __always_inline int count(enum verdict reason, enum xdp_action action)
{
	u32 index = reason;
	u64 *packets = verdicts.lookup(&index);

	if (packets)
		(*packets)++;
	return action;
}

static __always_inline int drop(enum verdict reason)
{
	return count(reason, XDP_DROP);
}

static __always_inline void count_connection(u32 service, u32 endpoint)
{
	struct traffic *of_service = service_counters.lookup(&service);
	struct traffic *of_endpoint = endpoint_counters.lookup(&endpoint);

	if (of_service)
		of_service->connections++;
	if (of_endpoint)
		of_endpoint->connections++;
}

static __always_inline void count_request(u32 service, u32 endpoint, u32 bytes)
{
	struct traffic *of_service = service_counters.lookup(&service);
	struct traffic *of_endpoint = endpoint_counters.lookup(&endpoint);

	if (of_service) {
		of_service->request_packets++;
		of_service->request_bytes += bytes;
	}
	if (of_endpoint) {
		of_endpoint->request_packets++;
		of_endpoint->request_bytes += bytes;
	}
}

static __always_inline void count_reply(u32 service, u32 endpoint, u32 bytes)
{
	struct traffic *of_service = service_counters.lookup(&service);
	struct traffic *of_endpoint = endpoint_counters.lookup(&endpoint);

	if (of_service) {
		of_service->reply_packets++;
		of_service->reply_bytes += bytes;
	}
	if (of_endpoint) {
		of_endpoint->reply_packets++;
		of_endpoint->reply_bytes += bytes;
	}
}
