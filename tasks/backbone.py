"""backbone: a name in, a pretrained network and its description out.

python -m tasks.backbone
"""

from rootstock.config.params import Params
from tasks.bridge.stage import Summary, stage
from tasks.bridge.workspace import BACKBONE


@stage
def backbone(params: Params) -> Summary:
    """Fetch the backbone's weights, check them and describe the network."""
    from rootstock.backbones.backbones import prepare

    described = prepare(params.backbone, params.seed, BACKBONE)
    size, millions = described["transform"]["size"], described["parameters"] / 1e6
    return Summary(0, f"{described['name']} at {size} px, {millions:.1f} M parameters, {described['origin']}")


if __name__ == "__main__":
    backbone.main()
