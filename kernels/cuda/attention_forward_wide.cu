// Instances that compile side by side with those of the other widths.
#include "kernels/cuda/attention_forward_kernel.cuh"

template td_status td_attention_forward_launch<96>(const td_op_context *,
                                                   const td_attention_shape *,
                                                   td_attention_forward_params *);

template td_status td_attention_forward_launch<128>(const td_op_context *,
                                                    const td_attention_shape *,
                                                    td_attention_forward_params *);

template td_status td_attention_forward_launch<256>(const td_op_context *,
                                                    const td_attention_shape *,
                                                    td_attention_forward_params *);
