# The detector of Shapes as an MMDetection configuration: a Faster R-CNN with a ResNet-18 of a quarter of the usual
# width. At 160 pixels it takes some 10 ms per image on a CPU.
classes = tuple(
    f"{colour} {shape}"
    for colour in ("red", "green", "blue", "yellow", "purple")
    for shape in ("circle", "square", "triangle", "star")
)
metainfo = dict(classes=classes)

model = dict(
    type="FasterRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor", mean=[127.5] * 3, std=[64.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(
        type="ResNet",
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_eval=False,
        style="pytorch",
    ),
    neck=dict(type="FPN", in_channels=[16, 32, 64, 128], out_channels=48, num_outs=4),
    rpn_head=dict(
        type="RPNHead",
        in_channels=48,
        feat_channels=48,
        anchor_generator=dict(type="AnchorGenerator", scales=[4.0, 5.7], ratios=[1.0], strides=[4, 8, 16, 32]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=5, sampling_ratio=2),
            out_channels=48,
            featmap_strides=[4, 8, 16],
            finest_scale=24,
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=48,
            fc_out_channels=128,
            roi_feat_size=5,
            num_classes=len(classes),
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=True,
            loss_cls=dict(type="CrossEntropyLoss", loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.6, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type="RandomSampler", num=128, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(nms_pre=300, max_per_img=100, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=False
            ),
            sampler=dict(type="RandomSampler", num=48, pos_fraction=0.5, add_gt_as_proposals=True),
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=50, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=36),
    ),
)

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(160, 160), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("ori_shape", "img_shape", "scale_factor")),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline, metainfo=metainfo))
